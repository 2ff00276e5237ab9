"""Steps that loss scaling leaves out: an event each, and the running loss stays the mean of the steps that were taken.

In float16 a gradient that overflows is no fault: the step is left out, the scale is lowered, training continues. But
the Trainer adds the loss of such a step, which may be NaN, to its running sum, where it would stay to the end, in each
checkpoint too. So the sum goes back to what it was before the step, and the step is not counted in the mean.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from training.metrics import names
from training.trainers.finite import MAX_SKIPPED_IN_A_ROW, NotFiniteError

logger = logging.getLogger("redline.train")


class SkippedSteps:
    """One for a run. Costs a copy of a scalar on the device a step, and only with loss scaling."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._loss_before: torch.Tensor | None = None
        self._in_engine = 0
        self._in_a_row = 0
        self._since_record = 0

    @property
    def is_scaling(self) -> bool:
        """Whether the loss is scaled."""
        engine = self._engine
        return bool(engine.fp16_enabled()) if engine is not None else self._trainer.accelerator.scaler is not None

    @property
    def _engine(self) -> Any:
        return self._trainer.model_wrapped if self._trainer.is_deepspeed_enabled else None

    def begin_step(self) -> None:
        """Note the running loss and the engine's count before the step."""
        if self.is_scaling:
            self._loss_before = self._trainer._tr_loss.clone()
            self._in_engine = self._engine.skipped_steps if self._engine is not None else 0

    def end_step(self) -> None:
        """After the optimizer step. The same on all ranks, since they overflow together.

        Raises NotFiniteError after `MAX_SKIPPED_IN_A_ROW` steps, or one at a scale of 1: no scale is low enough.
        """
        if self._loss_before is None:
            return
        if not self._was_skipped():
            self._in_a_row = 0
            return
        trainer, step, scale = self._trainer, self._trainer.state.global_step, self._find_scale()
        trainer._tr_loss.copy_(self._loss_before)
        trainer._globalstep_last_logged += 1  # the mean is over one step less
        self._in_a_row += 1
        self._since_record += 1
        message = f"step {step} was skipped: its gradient overflowed at a loss scale above {scale:g}"
        if trainer.args.should_save:
            trainer.run_dir.append_event("skipped_step", step, message, loss_scale=scale, in_a_row=self._in_a_row)
            logger.warning("%s", message)
        if self._in_a_row >= MAX_SKIPPED_IN_A_ROW or scale < 1:
            raise NotFiniteError(
                f"step {step}: {self._in_a_row} steps in a row were skipped, the loss scale is down to {scale:g}: the "
                "gradient is not finite at any scale; train in bf16, or lower training.learning_rate"
            )

    def take_record(self) -> dict[str, float]:
        """For the record of this step; empty when none was left out since the last."""
        count, self._since_record = self._since_record, 0
        return {names.TRAIN_SKIPPED_STEPS: float(count)} if count else {}

    def _was_skipped(self) -> bool:
        if self._engine is not None:
            return self._engine.skipped_steps > self._in_engine
        return bool(self._trainer.accelerator.optimizer_step_was_skipped)

    def _find_scale(self) -> float:
        """After it was lowered."""
        if self._engine is not None:
            optimizer = self._engine.optimizer
            return float(getattr(optimizer, "loss_scale", None) or getattr(optimizer, "cur_scale", 1.0))
        return float(self._trainer.accelerator.scaler.get_scale())
