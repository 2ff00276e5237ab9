"""Casts are shared by the micro-batches of a step and by nothing else."""

from types import SimpleNamespace
from typing import Any

import torch

from training.callbacks.weight_casts import WeightCasts
from training.models.fused import CastWeights


def test_casts_live_from_the_beginning_of_a_step_to_its_end() -> None:
    casts = CastWeights()
    trainer: Any = SimpleNamespace()
    callback = WeightCasts(trainer, casts)
    weight = torch.ones(2, 2)
    callback.on_step_begin(None, None, None)
    kept = casts.get((weight,), torch.bfloat16)
    assert casts.get((weight,), torch.bfloat16) is kept
    callback.on_step_end(None, None, None)
    weight.mul_(2)
    assert float(casts.get((weight,), torch.bfloat16)[0, 0]) == 2
    callback.on_step_begin(None, None, None)
    assert float(casts.get((weight,), torch.bfloat16)[0, 0]) == 2
