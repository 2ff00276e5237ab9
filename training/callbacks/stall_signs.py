"""Tells the watchdog where the training stands (`training/stalls.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from training.callbacks.contract import StatefulCallback
from training.run_dir import RunDir
from training.stalls import StallWatch


@dataclass(eq=False)
class StallSigns(StatefulCallback):
    """A sign of progress at each step, each batch of an evaluation and each save.

    Metrics recorded: none.
    """

    run_dir: RunDir
    watch: StallWatch
    _took_only_a_step: bool = False

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """The run directory is open: stacks go there."""
        self.watch.write_to(self.run_dir.path / "stalls")
        self.watch.enter("the first step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step is over; what follows it first is an evaluation or a save, where one is due."""
        self.watch.end_step(state.global_step, took_only_a_step=self._took_only_a_step)
        self._took_only_a_step = not (control.should_evaluate or control.should_save)
        if not self._took_only_a_step:
            self.watch.enter("an evaluation" if control.should_evaluate else "a save")

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """A batch of an evaluation is over."""
        self.watch.enter("an evaluation")

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What follows an evaluation is a save, where one is due."""
        self.watch.enter("a save" if control.should_save else "a step")

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        """A save is over."""
        self.watch.enter("a step")

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """What comes after the last step is not watched."""
        self.watch.stop()
