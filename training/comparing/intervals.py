"""The ratio of two sides and an interval around it that two equal sides leave out at most 5 times in 100.

Windows of one run follow one another on one machine, so they are correlated, and a bootstrap over windows would be far
too narrow. What is resampled depends on what there is:

1. Repeats on a side: whole runs, the only unit whose repetition shows what changes from run to run. Their deviations
   are stretched by sqrt(R / (R - 1)), which makes the spread of R values unbiased (Davison and Hinkley 1997, Bootstrap
   Methods, 2.7, and 3.8 for resampling the highest level alone). Repeats that do not differ at all, as losses under
   one seed, are one run: 2.
2. One run on a side: how runs differ cannot be seen in it. **The rule**: the run's mean is taken to be as uncertain as
   the mean of a quarter of the run, and at least by what the run drifted from its first quarter to its last, and at
   least by an allowance for what changes only between runs (RUN_TO_RUN, and more on a CPU: `comparison.py`). So one
   contiguous quarter is drawn at random
   (moving blocks, Künsch 1989), nothing is divided by the number of quarters, and the deviations are stretched until
   their standard deviation reaches drift and allowance. Under independent noise this is more
   than twice too wide; under flicker noise, whose averages do not settle with length (as clocks': Allan 1966), the
   quarters are right, and under a random walk the drift is. More than the allowance from run to run stays unseen.
   Overlapping quarters are worth 1.5 times as many degrees of freedom as disjoint ones (Meketon and Schmeiser 1984).
3. One run against repeats: by the rule or by the spread of the other side's runs, whichever is wider.
4. Rounds (`paired`): the i-th runs of both sides ran one after the other, so ratios are taken within rounds, which
   cancels what the machine does slowly, and rounds are resampled. A machine that swings in step with the rounds would
   shift all of them alike, so runs that drift within themselves widen the interval: each counts with a variance of at
   least drift^2 / 4. Independent noise gives half of that (a quarter's variance is 4 times that of the mean, a
   difference of two quarters' 8 times): the price is an interval up to 1.4 times as wide.

The bootstrap's 95 % quantiles are then widened from normal to Student's t with Welch's degrees of freedom, and to the
level asked for (Hesterberg 2015, What Teachers Should Know about the Bootstrap, 4.4). docs/compare.md holds the
calibration. Costs about 1 ms an interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

PARTS = 4
MIN_WINDOWS_PER_PART = 2
DRIFT_VARIANCE = 4.0  # drift^2 over this is the least variance of a run in a round
PART_DEGREES = 1.5 * (PARTS - 1)
DRAWS = 2000
ALPHA = 0.05
POWER = 0.8
RUN_TO_RUN = 0.01  # relative standard deviation, on a GPU
SAME = 0.1  # of the allowance: runs that differ by less are one run repeated
ROUNDING = 1e-9  # means of equal constants may differ in their last digits


@dataclass(frozen=True)
class Windows:
    """One quantity of one run: `values` (n,) of its windows, `weights` (n,) that make their mean that of the run."""

    values: np.ndarray
    weights: np.ndarray

    def mean(self) -> float:
        return float(np.average(self.values, weights=self.weights))

    def drift(self) -> float:
        """How far the means of the first and the last quarter are apart; 0 where a quarter holds no window."""
        length = len(self.values) // PARTS
        if not length:
            return 0.0
        ends = (slice(None, length), slice(-length, None))
        first, last = (np.average(self.values[end], weights=self.weights[end]) for end in ends)
        return abs(float(last - first))

    def part_deviations(self, allowance: float = 0.0) -> np.ndarray:
        """By the rule (2.): deviations (k,) of every contiguous quarter's mean from the mean of all, stretched to the
        spread of disjoint quarters about the true mean, to the drift or to `allowance`, whichever is the largest; empty
        below 2 windows a quarter."""
        length = len(self.values) // PARTS
        if length < MIN_WINDOWS_PER_PART:
            return np.array([])
        work, weights = (np.cumsum(np.concatenate(([0.0], c))) for c in (self.values * self.weights, self.weights))
        means = (work[length:] - work[:-length]) / (weights[length:] - weights[:-length])
        deviations = (means - means.mean()) * math.sqrt(PARTS / (PARTS - 1))
        spread, least = float(deviations.std()), max(self.drift(), allowance)
        if spread >= least:
            return deviations
        return deviations * (least / spread) if spread else least * np.array([-1.0, 1.0])


@dataclass(frozen=True)
class Interval:
    """B against A. A ratio of means, or with `absolute` a difference; [low, high] at the level that was asked for.

    detectable: the smallest true change (ratio - 1, or difference) that such runs show 8 times in 10, by the same
    spread. low, high and detectable are None when the runs are too short for any: then nothing can be said.
    """

    estimate: float
    low: float | None
    high: float | None
    detectable: float | None
    degrees: float | None
    absolute: bool = False

    @property
    def differs(self) -> bool | None:
        """Whether the interval leaves out "no difference"; None without an interval."""
        if self.low is None or self.high is None:
            return None
        return not self.low - ROUNDING <= (0.0 if self.absolute else 1.0) <= self.high + ROUNDING


@dataclass(frozen=True)
class _Spread:
    """Draws (DRAWS,) of the error of one side's mean, and the degrees of freedom behind them."""

    draws: np.ndarray
    degrees: float


def find_interval(
    a: Sequence[Windows],
    b: Sequence[Windows],
    *,
    alpha: float = ALPHA,
    paired: bool = False,
    absolute: bool = False,
    allowance: float = RUN_TO_RUN,
) -> Interval:
    """B over A (`absolute`: B less A) from the runs of each side; `allowance` is relative, or with `absolute` is not.

    Raises ValueError for a side without runs, or paired sides of different length.
    """
    means_a, means_b = (np.array([run.mean() for run in side]) for side in (a, b))
    if not len(a) or not len(b) or (paired and len(a) != len(b)):
        raise ValueError(f"{len(a)} and {len(b)} runs cannot be compared")
    scale_a, scale_b = (1.0, 1.0) if absolute else (float(means_a.mean()), float(means_b.mean()))
    if not absolute and (scale_a <= 0 or scale_b <= 0):
        return Interval(math.nan, None, None, None, None)
    estimate = scale_b / scale_a if not absolute else float(means_b.mean() - means_a.mean())
    rng = np.random.default_rng(0)
    least = allowance if absolute else 0.0
    if paired and len(a) > 1:
        spread = _draw_runs(means_b / scale_b - means_a / scale_a, rng, least * math.sqrt(2.0))
        drifts = [run.drift() / scale for side, scale in ((a, scale_a), (b, scale_b)) for run in side]
        spread = _stretch(spread, math.sqrt(sum(drift**2 for drift in drifts) / DRIFT_VARIANCE) / len(a))
    else:
        allowances = (allowance * scale_a, allowance * scale_b)
        means = (means_a / scale_a, means_b / scale_b)
        spread = _join(_find_spreads(a, b, *means, (scale_a, scale_b), allowances, least, rng))
    return _build_interval(estimate, spread, alpha, absolute)


def _find_spreads(
    a: Sequence[Windows],
    b: Sequence[Windows],
    means_a: np.ndarray,
    means_b: np.ndarray,
    scales: tuple[float, float],
    allowances: tuple[float, float],
    least: float,
    rng: np.random.Generator,
) -> tuple[_Spread | None, _Spread | None]:
    spread_a = _draw_runs(means_a, rng, least) if len(a) > 1 else _draw_parts(a[0], allowances[0], scales[0], rng)
    spread_b = _draw_runs(means_b, rng, least) if len(b) > 1 else _draw_parts(b[0], allowances[1], scales[1], rng)
    if len(a) == 1 < len(b):
        spread_a = _wider(spread_a, _draw_runs(means_b, rng, least, size=1))
    if len(b) == 1 < len(a):
        spread_b = _wider(spread_b, _draw_runs(means_a, rng, least, size=1))
    return spread_a, spread_b


def _draw_runs(values: np.ndarray, rng: np.random.Generator, least: float, size: int | None = None) -> _Spread:
    """Errors of the mean of `size` of the runs (all of them by default).

    Losses under one seed repeat one another: what differs from run to run is in none of them. Runs that are closer than
    a tenth of `least`, the allowance of a loss, count as one run with that allowance.
    """
    count = len(values)
    if values.std() < SAME * least:
        return _Spread(rng.choice([-least, least], DRAWS), count - 1)
    deviations = (values - values.mean()) * math.sqrt(count / (count - 1))
    return _Spread(rng.choice(deviations, (DRAWS, size or count)).mean(axis=1), count - 1)


def _draw_parts(run: Windows, allowance: float, scale: float, rng: np.random.Generator) -> _Spread | None:
    deviations = run.part_deviations(allowance)
    return _Spread(rng.choice(deviations / scale, DRAWS), PART_DEGREES) if len(deviations) else None


def _stretch(spread: _Spread, least: float) -> _Spread:
    """`spread` with a standard deviation of `least` or more."""
    found = float(spread.draws.std())
    if found >= least:
        return spread
    draws = spread.draws * (least / found) if found else least * np.where(np.arange(DRAWS) % 2, 1.0, -1.0)
    return _Spread(draws, spread.degrees)


def _wider(one: _Spread | None, other: _Spread) -> _Spread:
    return other if one is None or other.draws.std() > one.draws.std() else one


def _join(sides: tuple[_Spread | None, _Spread | None]) -> _Spread | None:
    """Errors of B less those of A; degrees of freedom by Welch and Satterthwaite."""
    a, b = sides
    if a is None or b is None:
        return None
    var_a, var_b = float(a.draws.var()), float(b.draws.var())
    below = var_a**2 / a.degrees + var_b**2 / b.degrees
    return _Spread(b.draws - a.draws, (var_a + var_b) ** 2 / below if below else min(a.degrees, b.degrees))


def _build_interval(estimate: float, spread: _Spread | None, alpha: float, absolute: bool) -> Interval:
    if spread is None:
        return Interval(estimate, None, None, None, None, absolute)
    normal = NormalDist().inv_cdf(1 - ALPHA / 2)
    critical = find_t_quantile(1 - alpha / 2, spread.degrees)
    # An error of the estimate of +x means that the truth lies x lower: the quantiles change sides.
    below, above = (-critical / normal * x for x in np.quantile(spread.draws, (1 - ALPHA / 2, ALPHA / 2)).tolist())
    reach = (critical + find_t_quantile(POWER, spread.degrees)) * float(spread.draws.std())
    if absolute:
        return Interval(estimate, estimate + below, estimate + above, reach, spread.degrees, True)
    low, high = estimate * math.exp(max(below, -700.0)), estimate * math.exp(min(above, 700.0))
    return Interval(estimate, low, high, math.expm1(min(reach, 700.0)), spread.degrees)


def find_t_quantile(probability: float, degrees: float) -> float:
    """Quantile of Student's t for any `degrees` >= 1, from its density over t = sqrt(degrees) tan(x)."""
    edges = np.linspace(-math.pi / 2, math.pi / 2, 20_001)
    cumulated = np.cumsum(np.cos((edges[1:] + edges[:-1]) / 2) ** (degrees - 1))
    at = np.interp(probability, np.concatenate(([0.0], cumulated / cumulated[-1])), edges)
    return math.sqrt(degrees) * math.tan(float(at))
