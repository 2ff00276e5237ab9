"""Python's garbage collector, at chosen steps instead of in the middle of any (`perf.collect_garbage_every`).

A full collection walks all objects: half a second with the libraries of a run loaded. What is there before the first
step stays, so it is frozen, and a collection looks at the rest only. Ranks that collect at the same step wait once.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

from training.callbacks.contract import StatefulCallback
from training.callbacks.step_recorder import StepRecorder
from training.metrics import names


@dataclass(eq=False)
class GarbageCollection(StatefulCallback):
    """Switches automatic collection off for the training and collects every so many steps.

    Metrics recorded: none; its time is the phase `cache_clear`.
    """

    trainer: StepRecorder
    every: int
    """Optimizer steps between two collections."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Collect once and leave what is there alone from now on."""
        gc.collect()
        gc.freeze()
        gc.disable()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Collect after every so many steps."""
        if state.global_step % self.every == 0:
            with self.trainer.span(names.CACHE_CLEAR):
                gc.collect()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give it back to Python."""
        give_back()


def give_back() -> None:
    """Have Python collect automatically again. Also due where training fails: no callback runs then."""
    gc.enable()
    gc.unfreeze()
