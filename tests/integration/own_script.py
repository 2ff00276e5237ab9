"""A script as a user has it, without a recipe: the stock Trainer and ours on each rank, one after the other.

    torchrun --nproc_per_node=2 own_script.py FOLDER [DEEPSPEED_JSON]

leaves FOLDER/stock and FOLDER/mine, each with the Trainer's log as `log.json`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import Qwen2Config, Qwen2ForCausalLM, Trainer, TrainingArguments

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # as an installed package
from training.trainers import ProfiledTrainer

LENGTH = 24
STEPS = 4


def train(kind: type[Trainer], folder: Path, deepspeed: str | None) -> None:
    """Train a tiny Qwen2 on rows of random tokens."""
    args = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        logging_steps=1, save_strategy="steps", save_steps=2, learning_rate=1e-3, bf16=deepspeed is not None,
        deepspeed=deepspeed, use_cpu=True, report_to=[], disable_tqdm=True, seed=1,
    )  # fmt: skip
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    rows = torch.randint(64, (32, LENGTH)).tolist()
    trainer = kind(Qwen2ForCausalLM(config), args, train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}))
    trainer.train()
    if trainer.is_world_process_zero():
        (folder / "log.json").write_text(json.dumps(trainer.state.log_history))


def main() -> None:
    """Train with both."""
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    deepspeed = arguments[1] if len(arguments) > 1 else None
    train(Trainer, Path(arguments[0]) / "stock", deepspeed)
    train(ProfiledTrainer, Path(arguments[0]) / "mine", deepspeed)
    # Without this, gloo aborts at exit in one run of four, with the stock Trainer too: a rank that ends before the
    # others destroys a thread that still runs.
    torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
