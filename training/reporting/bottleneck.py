"""What binds a run: data, communication, launching, memory or compute.

The rule. Every phase of a step is of one kind; of the five kinds of training, the largest binds it:

    data           data_wait, h2d
    communication  comm_exposed
    compute        forward, backward and optimizer, each by its roofline: its least time is set by the peak rate
    memory         the same, where the least time is set by the bandwidth of the memory
    launch         what of these the GPU stood idle, where that was measured; where it was not, the phases that take
                   more than `FAR` times their least time: operations too small, or dispatched too slowly; in both
                   cases those without a roofline, as an optimizer that runs beside the device
    the rest       evaluation, checkpoints, logging, clearing the cache and what no phase claims: no training

Where the rest is larger than each of the five it is reported first, with what thins it; the shares of the five are then
of the time that is training. `docs/metrics.md` has the formulas. A run that ended without a summary has no roofline:
then nothing is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


# What thins the phases of the rest.
THINNED_BY = {
    names.EVAL: "raise training.eval_steps",
    names.CHECKPOINT: "raise training.save_steps",
    names.LOGGING: "raise monitor.plot_every, perf.log_every or monitor.train_every",
    names.CACHE_CLEAR: "raise perf.empty_cache_every",
    names.OTHER: "see what it is with perf.profile_steps",
}


@dataclass(frozen=True)
class Bottleneck:
    """shares: % of the step by kind, the largest first; phases: what each kind is made of, with its %."""

    shares: Mapping[str, float]
    phases: Mapping[str, tuple[tuple[str, float], ...]]

    @property
    def kind(self) -> str:
        """The kind that binds the training; never the rest."""
        return next(kind for kind in self.shares if kind in LEVERS)

    @property
    def levers(self) -> str:
        """Levers of `advise` that address it, separated by commas."""
        return LEVERS[self.kind]

    @property
    def rest_leads(self) -> bool:
        """Whether the time outside training is the largest part."""
        return next(iter(self.shares)) == REST

    @property
    def base(self) -> str:
        """What the percentages of `describe` are of."""
        return f"of the {self._training_pct:.1f} % of the step that is training" if self.rest_leads else "of the step"

    def describe(self) -> str:
        """`compute 89.5 % (forward 22.2, backward 67.3), memory 4.5 % (optimizer 4.5), …`"""
        scale = 100 / self._training_pct if self.rest_leads else 1.0
        kinds = [kind for kind in self.shares if not (self.rest_leads and kind == REST)]
        return ", ".join(_describe(kind, scale * self.shares[kind], self.phases[kind], scale) for kind in kinds)

    def describe_rest(self) -> str:
        """`51.0 % of the step (eval 40.0, checkpoint 11.0)`, its largest phase first."""
        return _describe("", self.shares[REST], self._rest, of=" of the step")

    def thin_rest(self) -> str:
        """`raise training.eval_steps (eval); …` for the phases that are at least a tenth of the rest."""
        large = [phase for phase, pct in self._rest if pct >= 0.1 * self.shares[REST]]
        return "; ".join(f"{THINNED_BY[phase]} ({phase})" for phase in large if phase in THINNED_BY)

    @property
    def _training_pct(self) -> float:
        return sum(share for kind, share in self.shares.items() if kind != REST)

    @property
    def _rest(self) -> list[tuple[str, float]]:
        return sorted(self.phases[REST], key=lambda phase: -phase[1])


def _describe(kind: str, share: float, phases: Iterable[tuple[str, float]], scale: float = 1.0, of: str = "") -> str:
    made_of = ", ".join(f"{phase} {scale * pct:.1f}" for phase, pct in phases)
    return f"{kind} {share:.1f} %{of} ({made_of})".lstrip()


def find_bottleneck(facts: RunFacts, idle_launch_ms: float | None = None) -> Bottleneck | None:
    """None where phases of training or roofline were not measured.

    idle_launch_ms: mean of `perf/gpu_idle_launch_ms`.
    """
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
    if not any(kind in LEVERS for kind in shares):
        return None
    if idle_pct:
        busy = shares.get(COMPUTE, 0.0) + shares.get(MEMORY, 0.0)
        idle = min(max(idle_pct - shares.get(LAUNCH, 0.0), 0.0), busy)
        for kind in (COMPUTE, MEMORY):
            if kind in shares and busy:
                shares[kind] *= 1 - idle / busy
                found[kind] = [(phase, pct * (1 - idle / busy)) for phase, pct in found[kind]]
        shares[LAUNCH] = shares.get(LAUNCH, 0.0) + idle
        found.setdefault(LAUNCH, []).append(("GPU idle", idle))
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
