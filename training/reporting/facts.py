"""The facts of a run, typed: what cards, tables and advice are made of.

`facts_from_summary` takes them from summary.json as it is (any key may be absent). `facts_from_run` fills what the
summary lacks, as in a run that is still going or was killed, from metrics.jsonl, and says so in `source`.
A value that nobody measured stays `None`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from training.metrics import names
from training.reporting.formatting import as_number, format_significant
from training.reporting.phases import PhaseShare, measured_phases, recorded_phases
from training.reporting.run_reader import Run
from training.reporting.statistics import mean_per_step, mean_rate
from training.reporting.summary import Summary


@dataclass(frozen=True)
class PeakFacts:
    """What MFU is against: peak TFLOP/s per device, the device, and where the figure comes from."""

    tflops: float | None
    device: str
    source: str
    spread_pct: float | None = None
    """Of a measured peak: interquartile range of its repeats over their median."""

    def describe(self) -> str:
        """Rate, source and device in one phrase."""
        if self.tflops is None:
            return f"peak unknown ({self.source or self.device})"
        value = f"{self.tflops:,.0f}" if self.tflops >= 100 else f"{self.tflops:.3g}"
        of = f" of {self.device}" if self.device else ""
        spread = "" if self.spread_pct is None else f", spread {self.spread_pct:.0f} %"
        return f"{value} TFLOP/s{of}" + (f", {self.source}{spread}" if self.source else "")


@dataclass(frozen=True)
class MemoryPlan:
    """The peak that the plan predicts beside the measured one, GiB of one rank; see `docs/memory.md`."""

    predicted_gib: float | None
    measured_gib: float | None
    base_gib: float | None
    predicted_pct: float | None
    note: str

    def describe(self) -> str:
        """Predicted and measured peak in one phrase."""
        if self.predicted_gib is None:
            return self.note
        if self.measured_gib is None or self.predicted_pct is None:
            return f"{self.predicted_gib:.2f} GiB predicted, not compared: {self.note}"
        base = f", without the {self.base_gib:.2f} GiB held before the model was built" if self.base_gib else ""
        return (
            f"{self.predicted_gib:.2f} GiB predicted, {self.predicted_pct:.0f} % of the {self.measured_gib:.2f} GiB "
            f"measured{base}"
        )


@dataclass(frozen=True)
class RooflinePhase:
    """A phase against the ceilings of the machine; see `docs/metrics.md`, "Roofline"."""

    phase: str
    ms: float
    tflops: float
    gigabytes: float
    least_ms: float
    bound: str
    """`compute` or `memory`: which ceiling sets `least_ms`."""
    reached_pct: float

    def describe_rate(self) -> str:
        """What it achieved, in the unit of the ceiling that binds it."""
        if self.bound == "compute":
            return f"{format_significant(1e3 * self.tflops / self.ms)} TFLOP/s"
        return f"{format_significant(1e3 * self.gigabytes / self.ms)} GB/s"


@dataclass(frozen=True)
class Roofline:
    """Measured bandwidth of the memory (copying, read and written), and the phases that compute."""

    gigabytes_per_second: float
    spread_pct: float | None
    phases: tuple[RooflinePhase, ...]


@dataclass(frozen=True)
class RunFacts:
    """See `docs/metrics.md`, "summary.json", for each field."""

    status: str = "unfinished"
    source: str = "summary.json"
    steps: float | None = None
    epochs: float | None = None
    tokens: float | None = None
    train_seconds: float | None = None
    loss_first: float | None = None
    loss_last: float | None = None
    eval_loss_first: float | None = None
    eval_loss_last: float | None = None
    bits_per_byte_last: float | None = None
    eval_bits_per_byte_last: float | None = None
    unigram_entropy_nats: float | None = None
    streamed: bool = False
    tokens_per_second: float | None = None
    mfu_pct: float | None = None
    mfu_palm_pct: float | None = None
    hfu_pct: float | None = None
    step_ms: float | None = None
    peak_memory_gib: float | None = None
    memory_plan: MemoryPlan | None = None
    parameters: float | None = None
    trainable_parameters: float | None = None
    attn_implementation: str | None = None
    peak: PeakFacts | None = None
    ceiling: PeakFacts | None = None
    """What the model's matmuls reach alone, each at its own shape."""
    phases: tuple[PhaseShare, ...] = ()
    roofline: Roofline | None = None
    loss_finite_until: int | None = None
    """The last step with a finite loss, where the last record has none."""
    sample_prompt: str | None = None
    sample_text: str | None = None
    """What follows the prompt."""
    error: str | None = None

    def phase(self, name: str) -> PhaseShare | None:
        """The share of a phase; None when it was not measured."""
        return next((phase for phase in self.phases if phase.name == name), None)

    @property
    def is_below_unigram(self) -> bool | None:
        """Whether the validation loss is below the unigram entropy; None when either is unknown."""
        if self.eval_loss_last is None or self.unigram_entropy_nats is None:
            return None
        return self.eval_loss_last < self.unigram_entropy_nats

    @property
    def ceiling_pct(self) -> float | None:
        """The model FLOPs as a share of what its matmuls reach alone; None where that was not measured."""
        peak, ceiling = self.peak, self.ceiling
        if self.mfu_pct is None or peak is None or not peak.tflops or ceiling is None or not ceiling.tflops:
            return None
        return self.mfu_pct * peak.tflops / ceiling.tflops

    @property
    def exceeds_ceiling(self) -> bool:
        """The run was faster than its matmuls alone: other programs had slowed that measurement."""
        return self.ceiling_pct is not None and self.ceiling_pct > 100

    def ceiling_sentence(self) -> str:
        """`ceiling_pct` in words; empty where it says nothing."""
        if self.ceiling is None or self.ceiling_pct is None or self.exceeds_ceiling:
            return ""
        share = format_significant(self.ceiling_pct, "%")
        return f"{share} of the {self.ceiling.tflops:.3g} TFLOP/s that its matmuls reach on their own"

    def entropy_sentence(self) -> str:
        """One sentence on validation loss against the unigram entropy of the validation text."""
        loss, entropy = self.eval_loss_last, self.unigram_entropy_nats
        if loss is None:
            return "Validation loss was not measured."
        if entropy is None:
            why = " (the data was streamed, no store was built)" if self.streamed else ""
            return f"Validation loss is {loss:.3f}; the unigram entropy to compare it with was not measured{why}."
        if loss < entropy:
            return (
                f"Validation loss {loss:.3f} is {entropy - loss:.3f} nats below the unigram entropy {entropy:.3f}: "
                "the model predicts from context, not from token frequencies alone."
            )
        return (
            f"Validation loss {loss:.3f} is not below the unigram entropy {entropy:.3f} ({loss - entropy:+.3f} nats): "
            "the model predicts no better than the token frequencies alone."
        )


_NUMBERS = (
    "steps", "epochs", "tokens", "train_seconds", "loss_first", "loss_last", "eval_loss_first", "eval_loss_last",
    "bits_per_byte_last", "eval_bits_per_byte_last",
    "unigram_entropy_nats", "tokens_per_second", "mfu_pct", "mfu_palm_pct", "hfu_pct", "step_ms", "peak_memory_gib",
    "parameters", "trainable_parameters",
)  # fmt: skip


def facts_from_summary(summary: Summary | None) -> RunFacts:
    """Facts of a run that has ended; what is absent or of a wrong type stays `None`."""
    summary = summary or Summary()
    sample = _mapping(summary.sample)
    facts = RunFacts(
        status=_text(summary.status) or "unfinished",
        attn_implementation=_text(summary.attn_implementation),
        streamed=summary.streamed is True,
        peak=_peak(summary.peak),
        ceiling=_peak(summary.ceiling),
        memory_plan=_memory_plan(summary.memory_plan),
        roofline=_roofline(summary.roofline),
        phases=recorded_phases(_mapping(summary.phases_ms), _mapping(summary.phases_pct)),
        sample_prompt=_text(sample.get("prompt")),
        sample_text=_text(sample.get("text")),
        error=_text(summary.error),
    )
    return replace(facts, **{key: as_number(getattr(summary, key)) for key in _NUMBERS})


def facts_from_run(run: Run) -> RunFacts:
    """Facts from the summary, and from metrics.jsonl where it has none. What a finished run did not measure stays so:
    its records may hold no more than the first steps."""
    facts = replace(facts_from_summary(run.summary), loss_finite_until=_find_end_of_finite(run))
    if facts.status == "finished":
        return facts
    loss, evaluation = run.series(names.TRAIN_LOSS).finite().values, run.series(names.EVAL_LOSS).finite().values
    measured: dict[str, Any] = {
        "steps": float(run.metrics.last_step) if len(run.metrics) else None,
        "epochs": run.series("epoch").last(),
        "tokens": run.series("tokens").last(),
        "train_seconds": run.series("time_s").last(),
        "loss_first": float(loss[0]) if len(loss) else None,
        "loss_last": float(loss[-1]) if len(loss) else None,
        "eval_loss_first": float(evaluation[0]) if len(evaluation) else None,
        "eval_loss_last": float(evaluation[-1]) if len(evaluation) else None,
        "bits_per_byte_last": run.series(names.TRAIN_BITS_PER_BYTE).last(),
        "eval_bits_per_byte_last": run.series(names.EVAL_BITS_PER_BYTE).last(),
        "unigram_entropy_nats": as_number(run.recorded("unigram_entropy_nats")),
        "tokens_per_second": mean_rate(run.series(names.PERF_TOKENS_PER_SECOND)),
        "mfu_pct": mean_rate(run.series(names.PERF_MFU_PCT)),
        "mfu_palm_pct": mean_rate(run.series(names.PERF_MFU_PALM_PCT)),
        "hfu_pct": mean_rate(run.series(names.PERF_HFU_PCT)),
        "step_ms": mean_per_step(run.series(names.PERF_STEP_MS)),
        "peak_memory_gib": _maximum(run, names.PERF_MEMORY_PEAK_GIB),
        "peak": _peak(run.recorded("peak")),
    }
    missing = {key: value for key, value in measured.items() if getattr(facts, key) is None and value is not None}
    if not facts.phases:
        missing["phases"] = measured_phases(run)
    source = facts.source if run.summary else "metrics.jsonl"
    return replace(facts, source=source, **missing)


def _find_end_of_finite(run: Run) -> int | None:
    loss = run.series(names.TRAIN_LOSS)
    finite = loss.finite()
    if not len(loss) or (len(finite) and finite.rows[-1] == loss.rows[-1]):
        return None
    return int(finite.steps[-1]) if len(finite) else 0


def _maximum(run: Run, key: str) -> float | None:
    values = run.series(key).finite().values
    return float(values.max()) if len(values) else None


def _peak(value: Any) -> PeakFacts | None:
    peak = _mapping(value)
    if not peak:
        return None
    device, source = (_text(peak.get(key)) or "" for key in ("device", "source"))
    return PeakFacts(as_number(peak.get("tflops")), device, source, as_number(peak.get("spread_pct")))


def _roofline(value: Any) -> Roofline | None:
    roofline = _mapping(value)
    bandwidth = as_number(roofline.get("gigabytes_per_second"))
    listed = roofline.get("phases")
    phases = [_mapping(phase) for phase in listed] if isinstance(listed, list) else []
    if bandwidth is None or not phases:
        return None
    found = []
    for phase in phases:
        numbers = {key: as_number(phase.get(key)) for key in ("ms", "tflops", "gigabytes", "least_ms", "reached_pct")}
        known = {key: number for key, number in numbers.items() if number is not None}
        if len(known) == len(numbers) and known["ms"] > 0:
            found.append(RooflinePhase(_text(phase.get("phase")) or "", bound=_text(phase.get("bound")) or "", **known))
    return Roofline(bandwidth, as_number(roofline.get("spread_pct")), tuple(found))


def _memory_plan(value: Any) -> MemoryPlan | None:
    plan = _mapping(value)
    if not plan:
        return None
    keys = ("predicted_gib", "measured_gib", "base_gib", "predicted_pct")
    return MemoryPlan(**{key: as_number(plan.get(key)) for key in keys}, note=_text(plan.get("note")) or "")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
