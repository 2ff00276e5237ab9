"""Periodic cache clearing (`perf.empty_cache_every`): between steps, with its cost as a phase of its own.

It gives cached blocks back to the device, which helps fragmentation under changing shapes and costs a synchronize plus
fresh allocations in the next step. With static shapes (packing) there is nothing to gain, so it is off by default.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
from transformers import TrainerCallback

from training.callbacks.spans import StepRecorder
from training.metrics import names


class CacheClearing(TrainerCallback):
    def __init__(self, trainer: StepRecorder, every: int) -> None:
        self._trainer = trainer
        self._every = every

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._every == 0:
            with self._trainer.span(names.CACHE_CLEAR):
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
