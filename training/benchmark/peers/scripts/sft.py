"""TRL's SFTTrainer with packing on exported rows.

    python -m training.benchmark.peers.scripts.sft --inputs FOLDER --output RESULT.json --settings '{"max_length": 512}'

`--settings` are arguments of SFTConfig. The strategy is `wrapped`: TRL's default, `bfd`, needs FlashAttention to keep
documents apart, which does not run on a CPU. Rows are tokenized already, so TRL only packs them: rows of `max_length`
tokens come out as they went in.
"""

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from training.benchmark.peers.scripts.rows import ExportedRows, StepClock, build_parser


def main() -> None:
    """Train and write the result."""
    options = build_parser().parse_args()

    rows = ExportedRows(options.inputs / "train")
    clock = StepClock(options.warmup)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(options.inputs / "model"),
        args=SFTConfig(
            packing=True, packing_strategy="wrapped", train_sampling_strategy="sequential", **options.settings
        ),
        train_dataset=Dataset.from_dict({"input_ids": [rows[index]["input_ids"] for index in range(len(rows))]}),
        processing_class=AutoTokenizer.from_pretrained(options.inputs / "model"),
        callbacks=[clock],
    )
    trainer.train()
    clock.write(trainer, options.output)


if __name__ == "__main__":
    main()
