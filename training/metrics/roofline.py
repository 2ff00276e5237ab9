"""How near forward, backward and optimizer come to what the machine allows (Williams et al. 2009, Roofline).

A phase that does F floating-point operations and moves B bytes takes at least F / (peak rate) and at least B /
(bandwidth of the memory), whichever is longer: that one binds it, and the share of its time is what it reaches. Both
ceilings are rates that were stated by the vendor or measured on this machine.

F is what the machine executes (`StepFlops.hardware`). B is counted so that it is surely moved: every matmul reads its
two factors and writes its result once, in the type it computes in; an optimizer step reads gradients, and reads and
writes weights and states once. Norms, activations, softmax, casts and second readings come on top and are not in it, so
a phase may in truth be nearer to its ceiling than reported, never further.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from training.metrics import names
from training.metrics.matmuls import Attention, Matmul, Matmuls
from training.metrics.peaks import Bandwidth, Peak
from training.metrics.throughput import StepWork
from training.optim.facts import Optimizer

COMPUTE, MEMORY = "compute", "memory"


@dataclass(frozen=True)
class PhaseRoofline:
    """One phase of a step on one device. least_ms: the longer of its two bounds; bound: which one that is."""

    phase: str
    ms: float
    tflops: float
    gigabytes: float
    least_ms: float
    bound: str

    @property
    def reached_pct(self) -> float:
        """The least possible time as a share of the measured one, in percent."""
        return 100.0 * self.least_ms / self.ms


@dataclass(frozen=True)
class Traffic:
    """Bytes that the matmuls of a model move at least, for each position and for each micro-batch."""

    forward_per_token: int
    forward_per_batch: int
    backward_per_token: int
    backward_per_batch: int

    @classmethod
    def of(cls, found: Matmuls, itemsize: int) -> Traffic:
        """itemsize: bytes of a number in a matmul."""
        matmuls = [matmul for matmul in (*found.layers, *found.head) if not matmul.rows]
        again = [matmul for matmul in matmuls if matmul.recomputed]
        attended = [attention for attention in found.attentions if attention.recomputed]
        values = (
            _rows(matmuls) + _attended(found.attentions),
            _weights(matmuls),
            _backward_rows(matmuls) + 2 * _attended(found.attentions) + _rows(again) + _attended(attended),
            _backward_weights(matmuls) + _weights(again),
        )
        return cls(*(itemsize * value for value in values))

    def count(self, tokens: float, micro_batches: float) -> dict[str, float]:
        """Bytes by phase for so many positions in so many micro-batches."""
        return {
            names.FORWARD: self.forward_per_token * tokens + self.forward_per_batch * micro_batches,
            names.BACKWARD: self.backward_per_token * tokens + self.backward_per_batch * micro_batches,
        }


def _rows(matmuls: Iterable[Matmul]) -> int:
    """Numbers of a position that are read and written."""
    return sum(m.times * (m.in_features + m.out_features) for m in matmuls)


def _weights(matmuls: Iterable[Matmul]) -> int:
    return sum(m.times * m.in_features * m.out_features for m in matmuls)


def _backward_rows(matmuls: Iterable[Matmul]) -> int:
    """Input gradient: out is read, in is written. Weight gradient: both are read."""
    return sum((m.input_grad + m.weight_grad) * m.times * (m.in_features + m.out_features) for m in matmuls)


def _backward_weights(matmuls: Iterable[Matmul]) -> int:
    """The weight is read for the input gradient; its own gradient is written."""
    return sum((m.input_grad + m.weight_grad) * m.times * m.in_features * m.out_features for m in matmuls)


def _attended(attentions: Iterable[Attention]) -> int:
    """Queries read and results written; keys and values, which queries may share, are left out."""
    return sum(attention.qk_width + attention.v_width for attention in attentions)


@dataclass(frozen=True)
class OptimizerWork:
    """Bytes that an optimizer step moves on this rank, and FLOPs of its matrix products."""

    bytes: int
    flops: int = 0


def count_optimizer_work(
    optimizer: torch.optim.Optimizer, facts: Optimizer, device: torch.device
) -> OptimizerWork | None:
    """Work of one step, from the states that it really has; None where the weights are not on `device`."""
    weights = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not weights or any(weight.device.type != device.type for weight in weights):
        return None
    states = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    moved = facts.count_moved_bytes(sum(weight.nbytes for weight in weights), sum(state.nbytes for state in states))
    return OptimizerWork(moved, facts.count_flops(weight.shape for weight in weights))


def find_roofline(
    phases_ms: Mapping[str, float],
    work: StepWork,
    traffic: Traffic,
    optimizer: OptimizerWork | None,
    peak: Peak,
    bandwidth: Bandwidth,
) -> list[PhaseRoofline]:
    """Forward, backward and optimizer, as far as they were timed. `phases_ms`, `work`: of a step, mean over ranks."""
    moved: dict[str, Any] = {**traffic.count(work.tokens, work.micro_batches)}
    moved[names.OPTIMIZER] = optimizer.bytes if optimizer else None
    done = {
        names.FORWARD: work.forward_flops,
        names.BACKWARD: work.hardware_flops - work.forward_flops,
        names.OPTIMIZER: optimizer.flops if optimizer else 0.0,
    }
    found = []
    for phase, flops in done.items():
        ms, moved_bytes = phases_ms.get(phase), moved[phase]
        if not ms or moved_bytes is None:
            continue
        compute_ms = flops / peak.tflops / 1e9
        memory_ms = moved_bytes / bandwidth.gigabytes_per_second / 1e6
        bound = COMPUTE if compute_ms >= memory_ms else MEMORY
        found.append(PhaseRoofline(phase, ms, flops / 1e12, moved_bytes / 1e9, max(compute_ms, memory_ms), bound))
    return found
