"""Memory of one rank at a micro-batch size: the parts of `states.py` and the traced step of `trace.py`, put together.

The peak is the worst of three moments: the passes (parameters, states, traced peak, communication buffers), the end of
the passes with what the optimizer step adds, and what is always there. To that come allowances, marked as such: the
CUDA context, and a share for kernels' workspaces and the allocator's fragmentation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from training.memory.states import MemoryPart, Place
from training.memory.trace import StepShape, StepTrace, StepTracer

CUDA_CONTEXT_BYTES = 600 * 2**20  # context and cuBLAS workspaces; 0.4 to 0.7 GiB on data-centre GPUs
NCCL_BYTES = 400 * 2**20  # communicators and channels, with several ranks
FRAGMENTATION_SHARE = 0.03  # of what the passes allocate

LARGEST_MICRO_BATCH = 4096


@dataclass(frozen=True)
class Estimate:
    """Bytes on one rank. `parts` are what a table lists; `device_peak` is what must fit."""

    micro_batch_size: int
    parts: list[MemoryPart]
    trace: StepTrace
    device_peak: int
    host: int
    allowances: int = 0
    """Of `device_peak`, what is allowed for and no tensor."""

    @property
    def tensor_peak(self) -> int:
        """What an allocator would count."""
        return self.device_peak - self.allowances


@dataclass(frozen=True)
class Evaluation:
    """Bytes on the device of one rank while it evaluates `rows` at once; `allowances` as in `Estimate`."""

    rows: int
    device_peak: int
    allowances: int

    @property
    def tensor_peak(self) -> int:
        """The highest memory of tensors during an evaluation, in bytes."""
        return self.device_peak - self.allowances


def estimate_rank(
    states: list[MemoryPart],
    tracer: StepTracer,
    shape: StepShape,
    *,
    gradient_bytes: int,
    on_gpu: bool,
    world_size: int,
) -> Estimate:
    """Put together what a rank holds.

    states: from `list_plain_parts` or `list_zero_parts`. gradient_bytes: of the full gradients when the step keeps
    them (`shape.keeps_gradients`), else 0.
    """
    trace = tracer.trace(shape)
    before = gradient_bytes if shape.accumulates else 0
    passes = [
        *(part for part in states if part.at == "passes"),
        MemoryPart(
            "activations after forward", trace.after_forward - before, at="passes", note=_activation_note(shape, trace)
        ),
        MemoryPart(
            "further peak of loss and backward",
            trace.peak - trace.after_forward,
            at="passes",
            note=f"logits and their gradient: {trace.logits / 2**30:.2f} GiB",
        ),
    ]
    allowances = list_allowances(sum(part.bytes for part in passes), on_gpu=on_gpu, world_size=world_size)
    gradients = _gradient_parts(shape, gradient_bytes)
    always = _sum([*states, *allowances], "always")
    left = 0 if shape.reduction else gradient_bytes  # what ZeRO reduced is in `states`
    peak = always + max(_sum([*passes, *gradients], "passes"), _sum(states, "step") + left)
    parts = [*(p for p in states if p.at == "always"), *gradients, *passes]
    parts += [*(p for p in states if p.at == "step"), *allowances]
    host = sum(part.bytes for part in parts if part.place == "host")
    return Estimate(shape.micro_batch_size, parts, trace, peak, host, sum(part.bytes for part in allowances))


def estimate_evaluation(
    states: list[MemoryPart], tracer: StepTracer, shape: StepShape, *, on_gpu: bool, world_size: int
) -> Evaluation:
    """`shape.micro_batch_size` rows forward, without gradients; the optimizer's states stay where they are."""
    passes = _sum(states, "passes") + tracer.trace_evaluation(shape)
    allowances = sum(part.bytes for part in list_allowances(passes, on_gpu=on_gpu, world_size=world_size))
    return Evaluation(shape.micro_batch_size, _sum(states, "always") + allowances + passes, allowances)


def _gradient_parts(shape: StepShape, size: int) -> list[MemoryPart]:
    """Gradients of the micro-batches before; otherwise they are made in backward, within its traced peak."""
    if shape.accumulates and shape.reduction and not shape.keeps_gradients:
        size = shape.reduction.partition
    if shape.accumulates and size:
        return [MemoryPart("gradients", size, at="passes", note="of earlier micro-batches")]
    if shape.reduction or not size:
        return []
    return [MemoryPart("gradients", size, at="step", note="made in the backward pass and part of its peak")]


def list_allowances(pass_bytes: int, *, on_gpu: bool, world_size: int) -> list[MemoryPart]:
    """What no formula knows: stated, not derived."""
    if not on_gpu:
        return []
    parts = [MemoryPart("CUDA context (allowance)", CUDA_CONTEXT_BYTES)]
    if world_size > 1:
        parts.append(MemoryPart("NCCL (allowance)", NCCL_BYTES))
    share = f"{100 * FRAGMENTATION_SHARE:.0f} % of what the passes allocate"
    return [
        *parts,
        MemoryPart("fragmentation, workspaces (allowance)", round(FRAGMENTATION_SHARE * pass_bytes), note=share),
    ]


def find_largest_micro_batch(estimate: Callable[[int], Estimate], known: Estimate, capacity: int) -> Estimate | None:
    """The largest micro-batch whose peak fits in `capacity` bytes, or None when not even 1 does.

    The peak is very nearly a straight line in the micro-batch size, so each guess comes from the line through two known
    sizes, until one fits and the next does not. As a rule two sizes are traced (`trace.py`).
    """
    fits = known.device_peak <= capacity
    if not fits and known.micro_batch_size == 1:
        return None
    low = known if fits else estimate(1)
    if low.device_peak > capacity:
        return None
    high = None if fits else known  # the smallest size known not to fit
    other = known
    while low.micro_batch_size < LARGEST_MICRO_BATCH:
        if high and high.micro_batch_size == low.micro_batch_size + 1:
            break
        guess = estimate(_guess_size(low, high or other, high, capacity))
        if guess.device_peak <= capacity:
            other, low = low, guess
        else:
            high = guess
    return low


def _guess_size(low: Estimate, other: Estimate, high: Estimate | None, capacity: int) -> int:
    """Where the line through `low` and `other` meets the capacity, strictly between `low` and `high`."""
    rows = other.micro_batch_size - low.micro_batch_size
    per_row = max(1.0, (other.device_peak - low.device_peak) / rows) if rows else capacity
    guess = low.micro_batch_size + int((capacity - low.device_peak) / per_row)
    most = high.micro_batch_size - 1 if high else LARGEST_MICRO_BATCH
    return max(low.micro_batch_size + 1, min(guess, most))


def _sum(parts: list[MemoryPart], at: str, place: Place = "device") -> int:
    return sum(part.bytes for part in parts if part.at == at and part.place == place)


def _activation_note(shape: StepShape, trace: StepTrace) -> str:
    mode = shape.checkpointing
    how = f"checkpointing {mode.name}" if mode.every else f"{shape.attention.name} attention"
    return f"{shape.micro_batch_size} x {shape.seq_len} tokens, {how}, {trace.layer / 2**20:.1f} MiB per layer"
