"""The record of a step, where it goes, and what of it a checkpoint keeps."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from training.callbacks.contract import load_states, read_states
from training.callbacks.sinks import Sink
from training.metrics import names
from training.run_dir import write_text_atomic

logger = logging.getLogger("redline.train")

SAVED = "redline.json"
# What the Trainer calls a metric -> its key in a record.
TRAINER_KEYS = {
    "loss": names.TRAIN_LOSS,
    "grad_norm": names.TRAIN_GRAD_NORM,
    "learning_rate": names.TRAIN_LEARNING_RATE,
    "eval_loss": names.EVAL_LOSS,
    "eval_bits_per_byte": names.EVAL_BITS_PER_BYTE,
}
# Of the Trainer's logs: facts of the whole training and clocks, which a record has by its own means.
NOT_RECORDED = {"step", "epoch", "total_flos", "num_tokens", "num_input_tokens_seen", "train_loss"}
CLOCKS = ("_runtime", "_per_second")


@dataclass
class Elapsed:
    """Seconds of training and tokens trained on, over all launches of a run."""

    seconds: float = 0.0
    tokens: int = 0
    tokens_before: int = 0
    """Of earlier launches."""
    last_seen: float | None = None
    """On the monotonic clock; None: training has not started."""

    def advance(self, now: float) -> None:
        """Add the seconds since the last call."""
        self.seconds += now - (now if self.last_seen is None else self.last_seen)
        self.last_seen = now


@dataclass
class Recorder:
    """Collects the metrics of the step under way and hands them to the sinks, which only rank 0 has."""

    sinks: list[Sink] = field(default_factory=list)
    progress: Elapsed = field(default_factory=Elapsed)
    keeps_all: bool = True
    """Whether all that the Trainer logs is recorded (`rewards/margins` of DPO); False: what `TRAINER_KEYS` has."""
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def has_record(self) -> bool:
        """Whether the step under way has anything to write."""
        return bool(self.record)

    def add(self, values: Mapping[str, float]) -> None:
        """Put metrics into the record."""
        self.record.update(values)

    def add_logs(self, logs: Mapping[str, Any]) -> None:
        """Put what the Trainer logs into the record, under its keys there."""
        self.add({TRAINER_KEYS[key]: value for key, value in logs.items() if key in TRAINER_KEYS})
        if self.keeps_all:
            self.add({_name(key): value for key, value in logs.items() if _is_other_metric(key, value)})

    def write(self, head: Mapping[str, Any]) -> None:
        """Give the sinks the record with `head` before it, and begin the next one."""
        record, self.record = self.record, {}
        for sink in self.sinks:
            sink.write({**head, **record})

    def close(self) -> None:
        """Flush and close the sinks."""
        for sink in self.sinks:
            sink.close()
        self.sinks = []

    def restore(self, saved: Mapping[str, Any], callbacks: Iterable[TrainerCallback]) -> None:
        """Take up what a checkpoint has, as `save_state` wrote it; nothing: from the beginning."""
        tokens = int(saved.get("tokens", 0))
        self.progress = Elapsed(float(saved.get("seconds", 0.0)), tokens, tokens)
        load_states(callbacks, saved.get("callbacks", {}))


def _name(key: str) -> str:
    return f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"


def _is_other_metric(key: str, value: Any) -> bool:
    known = key in TRAINER_KEYS or key in NOT_RECORDED or key.endswith(CLOCKS)
    return not known and isinstance(value, int | float) and not isinstance(value, bool)


def save_state(run: Path, step: int, recorder: Recorder, handler: Any) -> None:
    """Beside the Trainer's own files of a checkpoint: what records and callbacks resume from."""
    checkpoint = run / f"checkpoint-{step}"
    if not checkpoint.is_dir():  # a subclass that saves elsewhere, or nothing
        return
    progress = recorder.progress
    state = {"seconds": progress.seconds, "tokens": progress.tokens, "callbacks": read_states(handler.callbacks)}
    write_text_atomic(checkpoint / SAVED, json.dumps(state) + "\n")


def read_saved(checkpoint: str | None) -> dict[str, Any]:
    """Empty for a start from scratch, and for a checkpoint of another Trainer."""
    path = Path(checkpoint or ".") / SAVED
    if checkpoint is None or not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        logger.warning("%s: cannot be read, tokens and seconds are counted from 0 (%s)", path, error)
        return {}


class Clock(TrainerCallback):
    """Starts the clocks when training starts, and closes the meter when it ends."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clocks."""
        trainer = self._trainer
        trainer.recorder.progress.last_seen = time.monotonic()
        trainer.last_measured_step = state.global_step
        if trainer.meter:
            trainer.meter.timer.start()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the sums of the epoch."""
        if self._trainer.meter:
            with self._trainer.span(names.LOGGING):
                self._trainer.add_to_record(self._trainer.meter.epoch())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count what ran after the last step."""
        if self._trainer.meter:
            self._trainer.meter.close()
