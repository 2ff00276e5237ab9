"""Numbers and reductions over a series: statistics, smoothing, downsampling. Pure numpy, no I/O.

Downsampling for lines keeps the smallest and the largest value of each bucket, so that no spike of a million-step run
is lost in a 1,000 pixel plot; for stacked areas it takes means, so that parts still add up to their whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.reporting.run_reader import Series

RECENT_STEPS = 1000


@dataclass(frozen=True)
class SeriesStatistics:
    """What a curve says in numbers. `recent_*` is over the points of the last `recent_steps` steps.

    `recent_slope` is the least-squares slope in units per 1,000 steps, `None` below 3 points.
    """

    num_points: int
    num_not_finite: int
    first: float
    last: float
    last_step: int
    minimum: float
    minimum_step: int
    smoothed: float
    recent_steps: int
    recent_points: int
    recent_mean: float
    recent_std: float
    recent_minimum: float
    recent_maximum: float
    recent_slope: float | None


def compute_statistics(series: Series) -> SeriesStatistics | None:
    """Statistics over the finite points; `None` when there are none."""
    finite = series.finite()
    if not len(finite):
        return None
    values, steps = finite.values, finite.steps
    recent = recent_part(finite)
    lowest = int(np.argmin(values))
    return SeriesStatistics(
        num_points=len(values),
        num_not_finite=len(series) - len(values),
        first=float(values[0]),
        last=float(values[-1]),
        last_step=int(steps[-1]),
        minimum=float(values[lowest]),
        minimum_step=int(steps[lowest]),
        smoothed=float(smooth(values)[-1]),
        recent_steps=recent_window(int(steps[-1])),
        recent_points=len(recent),
        recent_mean=float(recent.values.mean()),
        recent_std=float(recent.values.std()),
        recent_minimum=float(recent.values.min()),
        recent_maximum=float(recent.values.max()),
        recent_slope=_slope_per_1000(recent),
    )


def recent_window(last_step: int) -> int:
    """Optimizer steps that count as recent: the last 1,000; of a run that has no more than those, its second half."""
    return RECENT_STEPS if last_step > RECENT_STEPS else (last_step + 1) // 2


def recent_part(series: Series) -> Series:
    """The points of the recent steps (not the last points)."""
    if not len(series):
        return series
    last_step = int(series.steps[-1])
    return series.after(last_step - recent_window(last_step))


def _slope_per_1000(series: Series) -> float | None:
    if len(series) < 3 or series.steps[0] == series.steps[-1]:
        return None
    offset = series.steps - series.steps.mean()
    return float(1000 * (offset @ (series.values - series.values.mean())) / (offset @ offset))


def smoothing_window(num_points: int) -> int:
    """Points in the running mean: a twentieth of the curve, at least 5 and at most 200."""
    return int(np.clip(num_points // 20, 5, 200))


def smooth(values: np.ndarray) -> np.ndarray:
    """Running mean of finite `values` (n,) over the last `min(window, 1 + i // 4)` points.

    The window starts at one point and grows, so that the steep beginning of a loss curve is followed without lag.
    Values beyond `find_upper_limit` count as that limit: one spike does not lift a whole window.
    """
    values = np.minimum(values, find_upper_limit(values) or np.inf)
    index = np.arange(len(values))
    width = np.minimum(smoothing_window(len(values)), 1 + index // 4)
    total = np.concatenate(([0.0], np.cumsum(values)))
    return (total[index + 1] - total[index + 1 - width]) / width


def downsample_min_max(series: Series, max_points: int) -> Series:
    """At most `max_points` of the finite points: first, last, and each bucket's minimum and maximum, in order."""
    series = series.finite()
    num_points = len(series)
    if num_points <= max_points:
        return series
    edges = np.linspace(0, num_points, max((max_points - 2) // 2, 1) + 1).astype(np.int64)
    kept = {0, num_points - 1}
    for begin, end in zip(edges[:-1], edges[1:], strict=True):
        bucket = series.values[begin:end]
        kept.update((int(begin + bucket.argmin()), int(begin + bucket.argmax())))
    return series.where(np.isin(np.arange(num_points), list(kept)))


def downsample_mean(steps: np.ndarray, matrix: np.ndarray, max_points: int) -> tuple[np.ndarray, np.ndarray]:
    """Bucket means of `matrix` (n, k) and the last step of each bucket: at most `max_points` rows."""
    if len(steps) <= max_points:
        return steps, matrix
    edges = np.linspace(0, len(steps), max_points + 1).astype(np.int64)
    sums = np.add.reduceat(matrix, edges[:-1], axis=0)
    return steps[edges[1:] - 1], sums / np.diff(edges)[:, None]


def find_upper_limit(values: np.ndarray) -> float | None:
    """Where to cut an axis whose highest values would flatten all the rest; `None` when nothing needs cutting.

    Cut only when the maximum is above three times the 99th percentile (at least 20 points).
    """
    values = values[np.isfinite(values)]
    if len(values) < 20:
        return None
    high = max(float(np.percentile(values, 99)), float(values[0]))
    return 1.15 * high if high > 0 and values.max() > 3 * high else None


def step_weights(steps: np.ndarray) -> np.ndarray:
    """How many optimizer steps each line (n,) stands for: those since the line before it."""
    return np.diff(steps, prepend=0).astype(np.float64)


def mean_per_step(series: Series) -> float | None:
    """Mean over optimizer steps of a per-step quantity (ms, GiB)."""
    weights = step_weights(series.steps)
    mask = np.isfinite(series.values) & (weights > 0)
    return float(np.average(series.values[mask], weights=weights[mask])) if mask.any() else None


def mean_rate(series: Series) -> float | None:
    """Mean over time of a rate (tokens/s, MFU) with equal work per step: the harmonic mean over steps."""
    weights = step_weights(series.steps)
    mask = np.isfinite(series.values) & (weights > 0) & (series.values > 0)
    return float(weights[mask].sum() / (weights[mask] / series.values[mask]).sum()) if mask.any() else None
