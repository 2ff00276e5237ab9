"""The ratio of two sides and its confidence interval, from repeats.

A run is one observation: its windows follow one another on one machine and are correlated, so they cannot show what
differs from run to run (memory layout, neighbours, the core it got). With two runs a side and more:

- Welch's t interval of the difference of the means of log values, as `scipy.stats.ttest_ind(equal_var=False)` has it;
  its exponential is the interval of a ratio. Times and rates are positive, and their errors are factors, so logs are
  nearer to normal, and a ratio and its inverse get the same verdict.
- Rounds (`paired`): the i-th runs of both sides ran one after the other. The t interval of the mean of the differences
  within rounds (`ttest_rel`) leaves out what the machine does slowly.
- Losses: the same of the values themselves, a difference in nats per token or bits per byte.

A single run on a side has no interval, nor have losses whose repeats are equal in every digit (one seed). A quantity
that is the same in all repeats of each side, as memory may be, has an exact ratio: an interval of no width. The minimum
detectable effect is the true change that such runs show with a power of 80 %:
(t(1 - alpha / 2) + t(0.8)) standard errors (Cohen 1988, Statistical Power Analysis, 2).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

ALPHA = 0.05
POWER = 0.8
ROUNDING = 1e-9  # means of equal constants may differ in their last digits


@dataclass(frozen=True)
class Interval:
    """B compared with A. A ratio of means, or with `absolute` a difference; [low, high] at the level that was asked
    for.

    detectable: the minimum detectable effect (ratio - 1, or difference). degrees: of freedom. low, high, detectable and
    degrees are None without repeats.
    """

    estimate: float
    low: float | None = None
    high: float | None = None
    detectable: float | None = None
    degrees: float | None = None
    absolute: bool = False

    @property
    def differs(self) -> bool | None:
        """Whether the interval excludes "no difference"; None without an interval."""
        if self.low is None or self.high is None:
            return None
        return not self.low - ROUNDING <= (0.0 if self.absolute else 1.0) <= self.high + ROUNDING


def find_interval(
    a: Sequence[float], b: Sequence[float], *, alpha: float = ALPHA, paired: bool = False, absolute: bool = False
) -> Interval:
    """B over A (`absolute`: B less A) from the value of each run.

    The ratio is that of geometric means where there is an interval. Raises ValueError for a side without runs, or
    paired sides of different length.
    """
    if not len(a) or not len(b) or (paired and len(a) != len(b)):
        raise ValueError(f"{len(a)} and {len(b)} runs cannot be compared")
    values_a, values_b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if not absolute and (values_a.min() <= 0 or values_b.min() <= 0):
        return Interval(math.nan)
    if not absolute:
        values_a, values_b = np.log(values_a), np.log(values_b)
    difference = float(values_b.mean() - values_a.mean())
    constant = _is_constant(values_a, values_b, paired)
    if min(len(a), len(b)) < 2 or (constant and absolute):
        return Interval(difference if absolute else math.exp(difference), absolute=absolute)
    if constant:
        ratio = math.exp(difference)
        return Interval(ratio, ratio, ratio, 0.0)
    test: Any = stats.ttest_rel if paired else stats.ttest_ind
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scipy warns where one side is constant: its variance is 0
        found: Any = test(values_b, values_a, **({} if paired else {"equal_var": False}))
    low, high = found.confidence_interval(1 - alpha)
    critical = float(stats.t.ppf(1 - alpha / 2, found.df))
    error = float(high - low) / 2 / critical
    reach = (critical + float(stats.t.ppf(POWER, found.df))) * error
    if absolute:
        return Interval(difference, float(low), float(high), reach, float(found.df), True)
    ratio, lowest, highest = (math.exp(min(float(x), 700.0)) for x in (difference, low, high))
    return Interval(ratio, lowest, highest, math.expm1(min(reach, 700.0)), float(found.df))


def _is_constant(a: np.ndarray, b: np.ndarray, paired: bool) -> bool:
    """Whether nothing differs from run to run (paired: from round to round)."""
    spreads = (b - a,) if paired else (a, b)
    scale = max(float(np.abs(a).max()), float(np.abs(b).max()), 1.0)
    return all(float(np.ptp(values)) <= ROUNDING * scale for values in spreads)
