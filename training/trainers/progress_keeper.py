"""What training starts and ends with beside the loop: clocks, what a checkpoint keeps of a run's progress, epochs."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from training.metrics import names
from training.run_dir import keep_finite

if TYPE_CHECKING:
    from training.trainers.profiled_trainer import ProfiledTrainer

logger = logging.getLogger("redline.train")


class ProgressKeeper(TrainerCallback):
    """Starts the clocks when training starts and restores what the Trainer's own state leaves out; reports epochs."""

    def __init__(self, trainer: ProfiledTrainer) -> None:
        self._trainer = trainer
        self._epochs_done = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer
        if trainer._resumed_progress is not None:
            progress = trainer._resumed_progress
            trainer.progress = progress
            state.log_history, state.best_metric = keep_finite(state.log_history), keep_finite(state.best_metric)
            sums = [value for value in progress.loss_sums if value is not None and math.isfinite(value)]
            if len(sums) < len(progress.loss_sums):
                logger.warning("the checkpoint's running loss is not finite: the next one logged is of later steps")
            elif len(sums) == args.world_size:
                trainer._tr_loss.fill_(sums[args.process_index])
                trainer._globalstep_last_logged = progress.last_logged_step
                if args.process_index == 0:
                    trainer._text.restore(progress.unlogged)
        trainer._started = time.monotonic()
        trainer._last_measured_step = state.global_step
        self._epochs_done = int(trainer.train_batches.epoch)
        if trainer.meter:
            trainer.meter.timer.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An epoch is over with the step that takes its last row; the next rows of that step are of the next epoch."""
        state.epoch = self._trainer.train_batches.epoch
        control.should_epoch_stop = control.should_epoch_stop or int(state.epoch) > self._epochs_done
        self._epochs_done = int(state.epoch)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._trainer.meter:
            self._trainer.meter.close()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._trainer.meter:
            with self._trainer.span(names.LOGGING):
                self._trainer.add_to_record(self._trainer.meter.epoch())
