"""Casts are shared by the micro-batches of a step and by nothing else."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from training.callbacks.weight_casts import WeightCasts
from training.models.projections import CastWeights, Projection, multiply


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


def test_steps_of_two_micro_batches_learn_what_they_learn_without_casts() -> None:
    nobody: Any = None
    weights = []
    for has_callback in (False, True):
        torch.manual_seed(0)
        linear, casts = nn.Linear(8, 4), CastWeights()
        callback = WeightCasts(nobody, casts)
        optimizer = torch.optim.AdamW(linear.parameters(), lr=0.1, fused=True)
        for _ in range(3):
            if has_callback:
                callback.on_step_begin(nobody, nobody, nobody)
            for _ in range(2):
                multiply(torch.randn(5, 8).bfloat16(), (Projection(linear),), casts).float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if has_callback:
                callback.on_step_end(nobody, nobody, nobody)
        weights.append(linear.weight.detach())
    assert torch.equal(weights[0], weights[1])
