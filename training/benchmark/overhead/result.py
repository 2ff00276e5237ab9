"""From the seconds of steps to profiling overhead, with its interval and its verdict."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from training.benchmark.interleave import Median, find_median
from training.benchmark.overhead.schedule import Schedule

MIN_PERIODS = 20  # fewer hold too little for a bootstrap
TRIM = 0.2  # of the pairs, at either end
DRAWS = 2000
LEVEL = 0.95
PLOTS_PCT = 0.05  # `callbacks/plotting.MAX_SHARE`
LIMIT_PCT = {"cpu": 0.5, "cuda": 0.2}


@dataclass(frozen=True)
class MeanInterval:
    """A mean and the interval around it that covers the true one with probability LEVEL."""

    mean: float
    low: float
    high: float

    def map(self, function: Callable[[float], float]) -> MeanInterval:
        """The estimate and its ends through a monotonic function."""
        return MeanInterval(function(self.mean), function(self.low), function(self.high))

    def format(self, digits: int, unit: str, *, has_interval: bool) -> str:
        """Value and interval with so many digits."""
        interval = f"{self.low:.{digits}f} to {self.high:.{digits}f}" if has_interval else "too few for an interval"
        return f"{self.mean:.{digits}f} {unit} ({interval})"


@dataclass(frozen=True)
class Costs:
    """Of a step without a record, of each of a record's two steps, and of a step on average over a period."""

    plain: MeanInterval
    record: MeanInterval
    together: MeanInterval


def find_costs(plain: np.ndarray, records: np.ndarray, period: int, trim: float = TRIM) -> Costs:
    """From what each pair says, of steps without a record (periods, pairs) and of records (periods,)."""
    periods = len(plain)

    def find_means(drawn: np.ndarray | slice) -> tuple[float, float, float]:
        one, other = find_trimmed_mean(plain[drawn].ravel(), trim), find_trimmed_mean(records[drawn], trim)
        return one, other, ((period - 2) * one + 2 * other) / period

    rng = np.random.default_rng(0)
    draws = [find_means(rng.integers(periods, size=periods)) for _ in range(DRAWS)]
    low, high = np.quantile(draws, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0).tolist()
    return Costs(*(MeanInterval(*bounds) for bounds in zip(find_means(slice(None)), low, high, strict=True)))


def find_trimmed_mean(values: np.ndarray, trim: float) -> float:
    """Mean of `values` (n,) without the highest and the lowest `trim` of them (Tukey and McLaughlin 1963)."""
    cut = int(trim * len(values))
    return float(np.sort(values)[cut : len(values) - cut].mean())


@dataclass(frozen=True)
class Result:
    """Seconds, without drawing, of each step in turn and of each accounted period; `inside`: of such a period, what the
    calls took; `drawing`: of each plot."""

    recipe: str
    schedule: Schedule
    device: str = ""
    ranks: int = 1
    seconds: list[float] = field(default_factory=list)
    accounted: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    drawing: list[float] = field(default_factory=list)

    @cached_property
    def pct(self) -> Costs:
        """Costs in percent of a step, trimmed."""
        return self._find_pct(TRIM)

    @cached_property
    def untrimmed_pct(self) -> Costs:
        """Costs in percent of a step, with nothing trimmed."""
        return self._find_pct(0.0)

    def _find_pct(self, trim: float) -> Costs:
        """On / off - 1, with the plots in `together`."""
        plain, records = (np.log(pairs[..., 0] / pairs[..., 1]) for pairs in self.schedule.pair(self.seconds))
        found = find_costs(plain, records, self.schedule.period, trim)
        costs = (
            one.map(lambda value: 100.0 * math.expm1(value)) for one in (found.plain, found.record, found.together)
        )
        plain, record, together = costs
        return Costs(plain, record, together.map(lambda value: value + self.drawing_pct))

    @cached_property
    def ms(self) -> Costs:
        """On - off, without plots."""
        plain, records = (1e3 * (pairs[..., 0] - pairs[..., 1]) for pairs in self.schedule.pair(self.seconds))
        return find_costs(plain, records / 2, self.schedule.period)

    @property
    def least_step_ms(self) -> float:
        """Steps from this length on stay within the aim, by the upper end of the interval, plots as often as they may
        be, if they cost as much in ms."""
        return 100.0 * self.ms.together.high / (self.limit_pct - PLOTS_PCT)

    @property
    def drawing_pct(self) -> float:
        """Without the first plot."""
        seconds = sum(self.drawing[1:])
        return 100.0 * seconds / (sum(self.seconds) + sum(self.accounted) + seconds)

    @property
    def accounted_pct(self) -> Median:
        """Time inside measuring calls, in percent of the period."""
        pairs = zip(self.inside, self.accounted, strict=True)
        return find_median([100.0 * inside / period for inside, period in pairs])

    @property
    def has_intervals(self) -> bool:
        """Whether there are enough periods for intervals."""
        return self.schedule.periods >= MIN_PERIODS

    @property
    def limit_pct(self) -> float:
        """The aim for this device, in percent."""
        return LIMIT_PCT[self.device]

    @property
    def verdict(self) -> str:
        """Whether the aim is reached by the whole interval."""
        found = self.pct.together
        if not self.has_intervals:
            return "not resolved"
        if found.high <= self.limit_pct:
            return "reached"
        return "not reached" if found.low > self.limit_pct else "not resolved"
