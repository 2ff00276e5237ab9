"""Losses at equal tokens and at equal training time.

Curves of `train/loss` against the columns `tokens` and `time_s` of the same lines. A logged training loss is the mean
since the one before, so curves are compared by their means over the same stretches, however often each run logs:

- the table: each run's mean over the `TABLE_SHARE` of the common range (or the `TABLE_RECORDS` records of the run that
  logs least) that end at 25, 50, 75 and 100 % of what all runs have reached;
- the difference that is judged, B less A: the mean over the last quarter of that range.

In nats per token, and beside them in bits per byte; of runs with other tokenizers in bits per byte alone (`units.py`).

With repeats its interval is that of `intervals.py`, over runs. Losses that are equal in every digit at every common
step are marked so. Evaluation losses are compared at the last evaluation that all runs have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.comparing.intervals import Interval, find_interval
from training.comparing.sides import Side
from training.comparing.units import LossUnit, choose_units
from training.metrics import names
from training.reporting.run_reader import Run
from training.reporting.statistics import smooth

SHARES = (0.25, 0.5, 0.75, 1.0)
LATE_SHARE = 0.75
EARLY_SHARE = 0.1
TABLE_SHARE = 0.05
TABLE_RECORDS = 5
MAX_WINDOWS = 2000


@dataclass(frozen=True)
class Curve:
    """A loss of one run: `x` (n,) increasing tokens or seconds, `y` (n,) in its unit, each since the x before."""

    x: np.ndarray
    y: np.ndarray

    def at(self, x: np.ndarray) -> np.ndarray:
        """The loss at these points, interpolated linearly."""
        return np.interp(x, self.x, self.y)

    def smoothed(self) -> Curve:
        """For the eye: the fewer the records, the wider."""
        return Curve(self.x, smooth(self.y))

    def means(self, edges: np.ndarray) -> np.ndarray:
        """Of y between `edges` (m,), within the curve's range and increasing: (m - 1,)."""
        sums = np.concatenate([[0.0], np.cumsum(self.y[1:] * np.diff(self.x))])
        return np.diff(np.interp(edges, self.x, sums)) / np.diff(edges)


@dataclass(frozen=True)
class LossComparison:
    """Of one loss along one axis. x: the points of the table; a, b: means over the runs of a side there."""

    key: str
    axis: str
    x: tuple[float, ...]
    a: tuple[float, ...]
    b: tuple[float, ...]
    interval: Interval | None
    equal: bool


def load_curve(run: Run, axis: str, key: str = names.TRAIN_LOSS) -> Curve | None:
    """None when the run has fewer than 2 points of it."""
    loss, along = run.series(key).finite(), run.series(axis).finite()
    rows, at, where = np.intersect1d(loss.rows, along.rows, return_indices=True)
    if len(rows) < 2:
        return None
    x, first = np.unique(along.values[where], return_index=True)
    return Curve(x, loss.values[at][first])


def compare_losses(a: Side, b: Side, *, alpha: float, paired: bool = False) -> list[LossComparison]:
    """In each unit the training loss along each axis, then the evaluation loss; what was not measured is left out."""
    found: list[LossComparison | None] = []
    for unit in choose_units((a, b)):
        judging = _Judging(unit, alpha, paired)
        found += [_compare_training(a, b, axis, judging) for axis in unit.axes]
        found.append(_compare_evaluation(a, b, judging))
    return [one for one in found if one is not None]


def is_equal(a: Side, b: Side, key: str) -> bool:
    """Whether every run has the same losses, in every digit, at the steps that all of them have (at least one)."""
    series = [run.series(key).finite() for side in (a, b) for run in side.runs]
    first = dict(zip(series[0].steps.tolist(), series[0].values.tolist(), strict=True))
    common = set(first).intersection(*(one.steps.tolist() for one in series[1:]))
    return bool(common) and all(
        first[step] == value
        for one in series[1:]
        for step, value in zip(one.steps.tolist(), one.values.tolist(), strict=True)
        if step in common
    )


@dataclass(frozen=True)
class _Judging:
    unit: LossUnit
    alpha: float
    paired: bool


def _compare_training(a: Side, b: Side, axis: str, judging: _Judging) -> LossComparison | None:
    unit = judging.unit
    curves_a, curves_b = ([load_curve(run, axis, unit.train_key) for run in side.runs] for side in (a, b))
    known_a, known_b = ([curve for curve in curves if curve] for curves in (curves_a, curves_b))
    if len(known_a) < len(a.runs) or len(known_b) < len(b.runs):
        return None
    begin, end = _find_range(known_a + known_b)
    if begin >= end:
        return None
    points = begin + (end - begin) * np.array(SHARES)
    widest = max(float(np.median(np.diff(curve.x))) for curve in known_a + known_b)
    width = max(TABLE_SHARE * (end - begin), TABLE_RECORDS * widest)
    stretches = [np.array([max(begin, point - width), point]) for point in points]
    values_a, values_b = (
        tuple(float(np.mean([curve.means(stretch) for curve in side])) for stretch in stretches)
        for side in (known_a, known_b)
    )
    equal = axis != "time_s" and is_equal(a, b, unit.train_key)
    interval = None if equal else judge_curves(known_a, known_b, alpha=judging.alpha, paired=judging.paired)
    return LossComparison(unit.train_key, axis, tuple(points.tolist()), values_a, values_b, interval, equal)


def _find_range(curves: Sequence[Curve]) -> tuple[float, float]:
    """What all of them have reached: x from and to."""
    return max(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)


def _find_edges(curves: Sequence[Curve], begin: float, end: float) -> np.ndarray:
    """The records of the coarsest curve past the first tenth, where its means are exact; of more than MAX_WINDOWS an
    even choice. At least three."""
    coarsest = min(curves, key=lambda curve: int(((curve.x >= begin) & (curve.x <= end)).sum()))
    start = begin + EARLY_SHARE * (end - begin)
    edges = coarsest.x[(coarsest.x >= start) & (coarsest.x <= end)]
    if len(edges) < 3 or edges[-1] < end - (edges[-1] - edges[0]) / len(edges):
        return np.linspace(start, end, max(3, len(edges)))
    chosen = np.linspace(0, len(edges) - 1, min(len(edges), MAX_WINDOWS + 1))
    return edges[chosen.round().astype(int)]


def judge_curves(a: Sequence[Curve], b: Sequence[Curve], *, alpha: float, paired: bool = False) -> Interval:
    """B less A over the last quarter of the range that all of them have. The range must not be empty."""
    begin, end = _find_range([*a, *b])
    edges = _find_edges([*a, *b], begin, end)
    weights = np.diff(edges)
    late = edges[1:] > begin + LATE_SHARE * (end - begin)
    sides = [[float(np.average(curve.means(edges)[late], weights=weights[late])) for curve in side] for side in (a, b)]
    return find_interval(*sides, alpha=alpha, paired=paired, absolute=True)


def _compare_evaluation(a: Side, b: Side, judging: _Judging) -> LossComparison | None:
    unit, axis = judging.unit, judging.unit.axes[0]
    curves_a, curves_b = ([load_curve(run, axis, unit.eval_key) for run in side.runs] for side in (a, b))
    known_a, known_b = ([curve for curve in curves if curve] for curves in (curves_a, curves_b))
    if len(known_a) < len(a.runs) or len(known_b) < len(b.runs):
        return None
    end = min(curve.x[-1] for curve in known_a + known_b)
    if end < max(curve.x[0] for curve in known_a + known_b):
        return None
    last = [[float(curve.at(np.array([end]))[0]) for curve in side] for side in (known_a, known_b)]
    equal = is_equal(a, b, unit.eval_key)
    judged: Any = {"alpha": judging.alpha, "paired": judging.paired, "absolute": True}
    interval = None if equal else find_interval(*last, **judged)
    mean_a, mean_b = (float(np.mean(side)) for side in last)
    return LossComparison(unit.eval_key, axis, (float(end),), (mean_a,), (mean_b,), interval, equal)
