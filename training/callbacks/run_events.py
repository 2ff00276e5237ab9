"""`events.jsonl` from the Trainer's own events, and `ds_config.json`: what DeepSpeed really got. Rank 0 only."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass
from typing import Any

from training.callbacks.contract import StatefulCallback
from training.data.token_bytes import fingerprint_cuts
from training.run_dir import RunDir

logger = logging.getLogger("redline.train")


@dataclass(eq=False)
class RunEvents(StatefulCallback):
    """Writes starts, resumes and evaluations. `RecipeTrainer` writes a save once its checkpoint is complete.

    Metrics recorded: none.
    """

    trainer: Any
    run_dir: RunDir
    unigram_entropy_nats: float | None
    """Of the token store; None: not known."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the start or resume, and what DeepSpeed received."""
        resumed = state.global_step > 0
        peak = self.trainer.meter.peak if self.trainer.meter else None
        self.run_dir.append_event(
            "resume" if resumed else "start",
            state.global_step,
            f"training resumes from step {state.global_step}" if resumed else f"training for {state.max_steps} steps",
            max_steps=state.max_steps,
            unigram_entropy_nats=self.unigram_entropy_nats,
            peak=asdict(peak) if peak else None,
            tokenizer_cuts=fingerprint_cuts(self.trainer.processing_class),
        )
        if self.trainer.is_deepspeed_enabled:
            self.run_dir.write_json(self.run_dir.ds_config, self.trainer.deepspeed.config)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Write the validation loss, or that it is not finite."""
        if not metrics or "eval_loss" not in metrics:
            return
        loss = metrics["eval_loss"]
        if not math.isfinite(loss):
            message = f"validation loss is {loss}: it never counts as the best one; training continues"
            logger.warning("step %d: %s", state.global_step, message)
            self.run_dir.append_event("not_finite", state.global_step, message, eval_loss=str(loss))
        else:
            self.run_dir.append_event("eval", state.global_step, f"validation loss {loss:.4f}")
