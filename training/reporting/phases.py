"""Where a step's time goes: the phases of `training.metrics.names`, as a table and over the run.

The phases of a line are exclusive and sum to its wall time, so a phase that a line leaves out took no time in it,
provided that some line of the run measured it. A phase that no line measured is left out altogether.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.metrics import names
from training.reporting.formatting import as_number
from training.reporting.run_reader import Run
from training.reporting.statistics import step_weights

PHASE_MEANINGS = {
    names.DATA_WAIT: "waiting for the next batch",
    names.H2D: "copying the batch to the device",
    names.FORWARD: "forward pass and loss",
    names.BACKWARD: "backward pass, with recomputation",
    names.COMM_EXPOSED: "exposed communication between ranks",
    names.OPTIMIZER: "gradient clipping, optimizer step",
    names.CACHE_CLEAR: "emptying the allocator's cache",
    names.CHECKPOINT: "writing checkpoints",
    names.EVAL: "evaluation on the validation set",
    names.LOGGING: "writing records, drawing plots",
    names.OTHER: "time outside all phases above",
}


@dataclass(frozen=True)
class PhaseShare:
    """One phase: mean ms per optimizer step and its part of the step in %."""

    name: str
    ms: float | None
    pct: float | None

    @property
    def meaning(self) -> str:
        """What the phase is, in a few words."""
        return PHASE_MEANINGS.get(self.name, "")


@dataclass(frozen=True)
class PhaseTimes:
    """Phases over a run: `steps` (n,), `names` k phases, `ms` (n, k) mean ms per optimizer step of each line."""

    steps: np.ndarray
    names: tuple[str, ...]
    ms: np.ndarray


def load_phase_times(run: Run) -> PhaseTimes:
    """All lines that hold at least one phase; n = 0 when there is none."""
    series = {phase: run.series(names.phase_key(phase)).finite() for phase in names.PHASES}
    series = {phase: points for phase, points in series.items() if len(points)}
    rows = np.unique(np.concatenate([points.rows for points in series.values()] or [np.array([], dtype=np.int64)]))
    ms = np.zeros((len(rows), len(series)))
    steps = np.zeros(len(rows), dtype=np.int64)
    for column, points in enumerate(series.values()):
        at = np.searchsorted(rows, points.rows)
        ms[at, column] = points.values
        steps[at] = points.steps
    return PhaseTimes(steps, tuple(series), ms)


def measured_phases(run: Run) -> tuple[PhaseShare, ...]:
    """The table from metrics.jsonl: each line counts for the steps since the line before it."""
    times = load_phase_times(run)
    weights = step_weights(times.steps)
    if not weights.sum():
        return ()
    means = np.average(times.ms, weights=weights, axis=0)
    return recorded_phases(dict(zip(times.names, means.tolist(), strict=True)), {})


def recorded_phases(ms: Mapping[str, Any], pct: Mapping[str, Any]) -> tuple[PhaseShare, ...]:
    """The table from given times, in the order of `names.PHASES`, unknown phases last; shares are filled in."""
    order = (*names.PHASES, *sorted(set(ms) - set(names.PHASES)))
    times = {phase: as_number(ms.get(phase)) for phase in order}
    total = sum(value for value in times.values() if value is not None)
    rows = []
    for phase, value in times.items():
        share = as_number(pct.get(phase))
        if share is None and value is not None and total > 0:
            share = 100 * value / total
        if value is not None or share is not None:
            rows.append(PhaseShare(phase, value, share))
    return tuple(rows)
