"""Periodic cache clearing (`perf.empty_cache_every`): between steps, with its cost as a phase of its own.

It gives cached blocks back to the device, which helps fragmentation under changing shapes and costs a synchronize plus
fresh allocations in the next step. With static shapes (packing) there is nothing to gain, so it is off by default.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import torch

from training.callbacks.contract import StatefulCallback
from training.callbacks.step_recorder import StepRecorder
from training.metrics import names


@dataclass(eq=False)
class CacheClearing(StatefulCallback):
    """Collects garbage and empties the device's cache.

    Metrics recorded: none; its time is the phase `cache_clear`.
    """

    trainer: StepRecorder
    every: int
    """Optimizer steps between two clearings."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Clear after every so many steps."""
        if state.global_step % self.every == 0:
            with self.trainer.span(names.CACHE_CLEAR):
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
