"""Lets the micro-batches of one step share the cast weights of fused layers (`perf.fused_layers`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from training.callbacks.contract import StatefulCallback
from training.callbacks.step_recorder import StepRecorder
from training.models.projections import CastWeights


@dataclass(eq=False)
class WeightCasts(StatefulCallback):
    """Has casts kept while a step accumulates gradients, and dropped when its weights have changed.

    Metrics recorded: none.
    """

    trainer: StepRecorder
    casts: CastWeights

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Weights stay as they are until the step's end."""
        self.casts.clear()
        self.casts.keeps = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """They have changed. What comes now, an evaluation for one, keeps nothing."""
        self.casts.keeps = False
        self.casts.clear()
