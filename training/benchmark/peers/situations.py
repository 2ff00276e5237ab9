"""What is measured: each situation is a training that every side of it does, and the figure that is compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.benchmark.peers.reading import Measurement

LOG_EVERY = 5  # steps between two losses, on every side that takes it
WARMUP_STEPS = LOG_EVERY  # are not timed: a record ends with the last of them
VOCABULARY = 151_936  # of Qwen2
VOCABULARY_TOKENS = 4096  # of a micro-batch
VOCABULARY_STEPS = 10
CHAT_ROWS = 8
CHAT_TOKENS = 512
EVALUATED_ROWS = 64


@dataclass(frozen=True)
class PeerSettings:
    """recipe: arguments of train.py that name the model. steps, of which the first `WARMUP_STEPS` are not timed.

    tcmalloc: a library. litgpt: a Python that has LitGPT. nanogpt: a checkout. None: not given.
    """

    recipe: tuple[str, ...]
    steps: int
    seq_len: int
    batch: int
    rounds: int
    work_dir: Path
    on_cpu: bool = True
    vocab_size: int = 16_384
    chat: Path | None = None
    tcmalloc: str | None = None
    litgpt: str | None = None
    nanogpt: Path | None = None


@dataclass(frozen=True)
class Figure:
    """The quantity that is compared. Its ratio is above 1 where Redline is better."""

    name: str
    digits: int
    read: Callable[[Measurement], float | None]
    higher_is_better: bool = False


TOKENS = Figure("tokens/s", 0, lambda one: one.tokens_per_second, higher_is_better=True)
MEMORY = Figure("peak memory, GiB", 2, lambda one: one.peak_gib)
EVALUATION = Figure("seconds of an evaluation", 2, lambda one: one.eval_seconds)


@dataclass(frozen=True)
class Situation:
    """padded: the other sides train on a document a row and pad; Redline packs the same documents.

    changes: keys of the recipe that differ from those of pretraining. shape: steps, tokens of a row, rows of a
    micro-batch.
    """

    name: str
    what: str
    figure: Figure = TOKENS
    ranks: int = 1
    padded: bool = False
    evaluates: bool = False
    changes: Callable[[PeerSettings], dict[str, Any]] = lambda settings: {}
    shape: Callable[[PeerSettings], tuple[int, int, int]] = lambda one: (one.steps, one.seq_len, one.batch)
    obstacle: Callable[[PeerSettings], str | None] = lambda settings: None

    def build_arguments(self, settings: PeerSettings) -> dict[str, Any]:
        """The fields of TrainingArguments that all sides share."""
        steps, _, batch = self.shape(settings)
        evaluation = {"eval_strategy": "steps", "eval_steps": steps // 2} if self.evaluates else {"eval_strategy": "no"}
        return {
            "max_steps": steps,
            "per_device_train_batch_size": batch,
            "per_device_eval_batch_size": batch,
            "gradient_accumulation_steps": 1,
            "gradient_checkpointing": False,
            "learning_rate": 6e-4,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "weight_decay": 0.1,
            "adam_beta1": 0.9,
            "adam_beta2": 0.95,
            "adam_epsilon": 1e-8,
            "max_grad_norm": 1.0,
            "save_strategy": "no",
            "report_to": "none",
            "bf16": True,
            "seed": 1,
            **evaluation,
        }

    def build_recipe(self, settings: PeerSettings) -> dict[str, Any]:
        """Keys of the recipe by dotted name, without the place of the data."""
        _, seq_len, _ = self.shape(settings)
        return {
            **{f"training.{name}": value for name, value in self.build_arguments(settings).items()},
            "data.seq_len": seq_len,
            "data.long_documents": "truncate",
            "data.min_document_tokens": seq_len,  # every row is one whole document: all sides see the same attention
            "monitor.train_every": LOG_EVERY,
            "perf.log_every": LOG_EVERY,
            **self.changes(settings),
        }


def _change_vocabulary(settings: PeerSettings) -> dict[str, Any]:
    body = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "tie_word_embeddings": True,
            "max_position_embeddings": settings.seq_len}  # fmt: skip
    return {"model.config": {"model_type": "qwen2", "vocab_size": VOCABULARY, **body}}


def _shape_vocabulary(settings: PeerSettings) -> tuple[int, int, int]:
    return VOCABULARY_STEPS, settings.seq_len, max(1, VOCABULARY_TOKENS // settings.seq_len)


def _need_chat(settings: PeerSettings) -> str | None:
    return None if settings.chat else "no --chat FILE.jsonl was given"


PRETRAIN = Situation("pretrain", "Pretraining: every row is one document of as many tokens.")
CHAT = Situation(
    "chat",
    f"Chat data, {CHAT_ROWS} rows of at most {CHAT_TOKENS} tokens. Redline packs the documents that the stock Trainer "
    "pads. Useful tokens are counted, so padding is not. Steps hold other documents, so losses are not compared.",
    padded=True,
    changes=lambda settings: {"data.min_document_tokens": None},
    shape=lambda settings: (settings.steps, CHAT_TOKENS, CHAT_ROWS),
    obstacle=_need_chat,
)
ZERO2 = Situation("zero2", "Two ranks under the deepspeed launcher, ZeRO-2 with ds_configs/zero2_bf16.json.", ranks=2)
LARGE_VOCABULARY = Situation(
    "vocabulary",
    f"A vocabulary of {VOCABULARY:,}, {VOCABULARY_TOKENS:,} tokens a micro-batch, a body of two layers of width 128.",
    figure=MEMORY,
    changes=_change_vocabulary,
    shape=_shape_vocabulary,
)
EVALUATE = Situation(
    "evaluation",
    f"An evaluation of {EVALUATED_ROWS} rows within a training, in its middle.",
    figure=EVALUATION,
    evaluates=True,
)
SITUATIONS = (PRETRAIN, CHAT, ZERO2, LARGE_VOCABULARY, EVALUATE)
