"""What a checkpoint keeps of a run's progress, taken up again, and where epochs of our own batches end."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from training.callbacks.contract import load_states
from training.run_dir import keep_finite

if TYPE_CHECKING:
    from training.trainers.recipe_trainer import RecipeTrainer

logger = logging.getLogger("redline.train")


class ProgressKeeper(TrainerCallback):
    """Restores what the Trainer's own state leaves out when training starts; ends epochs."""

    def __init__(self, trainer: RecipeTrainer) -> None:
        self._trainer = trainer
        self._epochs_done = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore what the checkpoint kept."""
        trainer = self._trainer
        if trainer._resumed_progress is not None:
            progress = trainer._resumed_progress
            trainer.progress = progress
            load_states(trainer.callback_handler.callbacks, progress.callbacks)
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
        self._epochs_done = int(trainer.train_batches.epoch)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An epoch is over with the step that takes its last row; the next rows of that step are of the next epoch."""
        state.epoch = self._trainer.train_batches.epoch
        control.should_epoch_stop = control.should_epoch_stop or int(state.epoch) > self._epochs_done
        self._epochs_done = int(state.epoch)
