"""`events.jsonl` from the Trainer's own events, and `ds_config.json`: what DeepSpeed really got. Rank 0 only."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from typing import Any

from transformers import TrainerCallback

from training.data.token_bytes import fingerprint_cuts
from training.run_dir import RunDir

logger = logging.getLogger("redline.train")


class RunEvents(TrainerCallback):
    """Saves are written where the checkpoint becomes whole (`RecipeTrainer._finish_checkpoint`), not here."""

    def __init__(self, trainer: Any, run_dir: RunDir, unigram_entropy_nats: float | None) -> None:
        self._trainer = trainer
        self._run_dir = run_dir
        self._entropy = unigram_entropy_nats

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        resumed = state.global_step > 0
        peak = self._trainer.meter.peak if self._trainer.meter else None
        self._run_dir.append_event(
            "resume" if resumed else "start",
            state.global_step,
            f"training goes on from step {state.global_step}" if resumed else f"training for {state.max_steps} steps",
            max_steps=state.max_steps,
            unigram_entropy_nats=self._entropy,
            peak=asdict(peak) if peak else None,
            tokenizer_cuts=fingerprint_cuts(self._trainer.processing_class),
        )
        if self._trainer.is_deepspeed_enabled:
            self._run_dir.write_json(self._run_dir.ds_config, self._trainer.deepspeed.config)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        if not metrics or "eval_loss" not in metrics:
            return
        loss = metrics["eval_loss"]
        if not math.isfinite(loss):
            message = f"validation loss is {loss}: never the best, and nothing to compare; training goes on"
            logger.warning("step %d: %s", state.global_step, message)
            self._run_dir.append_event("not_finite", state.global_step, message, eval_loss=str(loss))
        else:
            self._run_dir.append_event("eval", state.global_step, f"validation loss {loss:.4f}")
