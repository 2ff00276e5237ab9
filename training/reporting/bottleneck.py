"""What binds a run: data, communication, launching, memory or compute.

The rule. Every phase of a step is of one kind, and the kind with the largest part of the step binds the run:

    data           data_wait, h2d
    communication  comm_exposed
    compute        forward, backward and optimizer, each by its roofline: its least time is set by the peak rate
    memory         the same, where the least time is set by the bandwidth of the memory
    launch         what of these the GPU stood idle, where that was measured; where it was not, the phases that take
                   more than `FAR` times their least time: operations too small, or dispatched too slowly
    rest           evaluation, checkpoints, logging and what no phase claims

`docs/metrics.md` has the formulas. A run that ended without a summary has no roofline: then nothing is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from training.metrics import names
from training.reporting.facts import RooflinePhase, RunFacts

FAR = 25.0  # poor kernels still reach a tenth of their ceiling; operations that are all overhead do not
DATA, COMMUNICATION, COMPUTE, MEMORY, LAUNCH, REST = "data", "communication", "compute", "memory", "launch", "the rest"

# What to try, by the names of `training.benchmark advise`.
LEVERS = {
    DATA: "workers,pinned-memory,packing",
    COMMUNICATION: "bucket-size,zero-stage,micro-batch",
    COMPUTE: "precision,attention,checkpointing,packing,threads",
    MEMORY: "micro-batch,optimizer,loss-kernel,attention,compile",
    LAUNCH: "micro-batch,compile,attention,optimizer,threads",
}


@dataclass(frozen=True)
class Bottleneck:
    """shares: % of the step by kind, the largest first; phases: what each kind is made of, with its %."""

    shares: Mapping[str, float]
    phases: Mapping[str, tuple[tuple[str, float], ...]]

    @property
    def kind(self) -> str:
        return next(iter(self.shares))

    @property
    def levers(self) -> str:
        return LEVERS.get(self.kind, "")

    def describe(self) -> str:
        """`compute 89.5 % (forward 22.2, backward 67.3), memory 4.5 % (optimizer 4.5), …`"""
        parts = []
        for kind, share in self.shares.items():
            made_of = ", ".join(f"{phase} {pct:.1f}" for phase, pct in self.phases[kind])
            parts.append(f"{kind} {share:.1f} %" + (f" ({made_of})" if made_of else ""))
        return ", ".join(parts)


def find_bottleneck(facts: RunFacts, idle_launch_ms: float | None = None) -> Bottleneck | None:
    """None where phases or roofline were not measured. idle_launch_ms: mean of `perf/gpu_idle_launch_ms`."""
    if facts.roofline is None or not facts.step_ms:
        return None
    idle_pct = None if idle_launch_ms is None else 100.0 * idle_launch_ms / facts.step_ms
    rooflines = {phase.phase: phase for phase in facts.roofline.phases}
    found: dict[str, list[tuple[str, float]]] = {}
    for phase in facts.phases:
        if phase.pct:
            kind = _find_kind(phase.name, rooflines, idle_is_known=idle_pct is not None)
            found.setdefault(kind, []).append((phase.name, phase.pct))
    shares = {kind: sum(pct for _, pct in made_of) for kind, made_of in found.items()}
    if idle_pct:
        busy = shares.get(COMPUTE, 0.0) + shares.get(MEMORY, 0.0)
        for kind in (COMPUTE, MEMORY):
            if kind in shares and busy:
                shares[kind] -= min(idle_pct, busy) * shares[kind] / busy
        shares[LAUNCH] = min(idle_pct, busy)
        found[LAUNCH] = [("GPU idle", min(idle_pct, busy))]
    order = sorted(shares, key=lambda kind: -shares[kind])
    return Bottleneck({kind: shares[kind] for kind in order}, {kind: tuple(found[kind]) for kind in order})


def _find_kind(phase: str, rooflines: Mapping[str, RooflinePhase], *, idle_is_known: bool) -> str:
    if phase in (names.DATA_WAIT, names.H2D):
        return DATA
    if phase == names.COMM_EXPOSED:
        return COMMUNICATION
    roofline = rooflines.get(phase)
    if roofline is None:
        return LAUNCH if phase in (names.FORWARD, names.BACKWARD, names.OPTIMIZER) else REST
    if not idle_is_known and roofline.ms > FAR * roofline.least_ms:
        return LAUNCH
    return roofline.bound
