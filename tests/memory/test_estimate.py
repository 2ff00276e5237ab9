"""Putting parts together, and finding the largest micro-batch, with numbers worked out by hand."""

from dataclasses import dataclass

import pytest

from training.activations.modes import OFF
from training.attention.stand_ins import FLASH
from training.memory.estimate import Estimate, estimate_rank, find_largest_micro_batch
from training.memory.states import MemoryPart
from training.memory.trace import StepShape, StepTrace


@dataclass
class FixedTracer:
    """400 after the forward pass, 1000 at the peak."""

    def trace(self, shape):
        return StepTrace(peak=1000, after_forward=400, layer=10, logits=700)


def shape(accumulates):
    return StepShape(1, 8, FLASH, None, checkpointing=OFF, accumulates=accumulates, keeps_gradients=True)


STATES = [
    MemoryPart("parameters", 5000),
    MemoryPart("buckets", 30, at="passes"),
    MemoryPart("fp32 gradients", 200, at="step"),
    MemoryPart("on host", 77, "host"),
]


@pytest.mark.parametrize(("gradients", "peak"), [(300, 5000 + 1000 + 30), (4000, 5000 + 200 + 4000)])
def test_peak_is_the_worse_of_passes_and_step(gradients, peak):
    estimate = estimate_rank(STATES, FixedTracer(), shape(False), gradient_bytes=gradients, on_gpu=False, world_size=1)  # pyright: ignore[reportArgumentType]
    assert (estimate.device_peak, estimate.host) == (peak, 77)


def test_parts_of_the_passes_add_up_when_accumulating():
    estimate = estimate_rank(STATES, FixedTracer(), shape(True), gradient_bytes=300, on_gpu=False, world_size=1)  # pyright: ignore[reportArgumentType]
    passes = {part.name: part.bytes for part in estimate.parts if part.at == "passes"}
    assert passes["gradients"] + passes["activations after forward"] == 400
    notes = {part.name: part.note for part in estimate.parts}
    assert notes["activations after forward"].startswith("1 x 8 tokens, flash attention,")
    assert estimate.device_peak == 5000 + sum(passes.values()) == 6030


def test_allowances_on_a_gpu_only():
    names = lambda **where: {  # noqa: E731
        part.name
        for part in estimate_rank(STATES, FixedTracer(), shape(False), gradient_bytes=0, **where).parts  # pyright: ignore[reportArgumentType]
        if "allowance" in part.name
    }
    assert names(on_gpu=False, world_size=2) == set()
    assert len(names(on_gpu=True, world_size=1)) == 2
    assert len(names(on_gpu=True, world_size=2)) == 3


def peak_by_size(size):
    """Bends at 8 rows: below it something else than the rows decides."""
    return Estimate(size, [], StepTrace(0, 0, 0, 0), max(1000 + 10 * size, 920 + 20 * size), 0)


@pytest.mark.parametrize("known", [1, 2, 6, 32])
@pytest.mark.parametrize("capacity", [1000, 1010, 1015, 1025, 1079, 1080, 1081, 1500, 3217])
def test_largest_micro_batch_against_trying_all(capacity, known):
    fitting = [size for size in range(1, 200) if peak_by_size(size).device_peak <= capacity]
    found = find_largest_micro_batch(peak_by_size, peak_by_size(known), capacity)
    assert (found.micro_batch_size if found else None) == (max(fitting) if fitting else None)
