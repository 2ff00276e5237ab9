"""The stock Hugging Face Trainer on exported rows.

    python -m training.benchmark.peers.scripts.stock --inputs FOLDER --output RESULT.json --settings '{"bf16": true}'

`--settings` are arguments of TrainingArguments. `--padded` pads the rows of a batch to the longest, as chat data needs.
"""

import os

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from training.benchmark.peers.scripts.rows import ExportedRows, StepClock, build_parser


def main() -> None:
    """Train and write the result."""
    parser = build_parser()
    parser.add_argument("--padded", action="store_true")
    parser.add_argument("--local_rank", type=int, default=int(os.environ.get("LOCAL_RANK", -1)))
    options = parser.parse_args()

    args = TrainingArguments(train_sampling_strategy="sequential", **options.settings)
    model = AutoModelForCausalLM.from_pretrained(options.inputs / "model")
    tokenizer = AutoTokenizer.from_pretrained(options.inputs / "model")
    clock = StepClock(options.warmup)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=ExportedRows(options.inputs / "train"),
        eval_dataset=ExportedRows(options.inputs / "evaluation") if args.eval_strategy != "no" else None,
        data_collator=DataCollatorForSeq2Seq(tokenizer) if options.padded else default_data_collator,
        callbacks=[clock],
    )
    trainer.train()
    clock.write(trainer, options.output)


if __name__ == "__main__":
    main()
