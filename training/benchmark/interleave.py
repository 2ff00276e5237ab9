"""Repeats of several sides in turn, and what they say: medians, ratios, and intervals that assume no distribution.

A machine drifts: caches warm up, neighbours come and go. So sides are never measured one after the other but in turn.
Rounds come in pairs: an order drawn at random (from a fixed seed), then its reverse. The reverse cancels a linear
drift; the draw keeps a machine that swings in step with the rounds from favouring one side in all of them. A ratio is
taken within each round, where both sides saw nearly the same machine, and only then summarised.

The interval of a median is that of its order statistics: the sample's k-th smallest to k-th largest value covers the
median with probability 1 - 2 P(Binomial(n, 1/2) < k) (Thompson 1936; Hollander, Wolfe and Chicken, Nonparametric
Statistical Methods, 3.6). Below 6 repeats not even the whole range covers 95 %; what it covers is then said.
"""

import math
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Median:
    """A median and the interval [low, high] around it that covers the true one with probability `coverage`."""

    median: float
    low: float
    high: float
    coverage: float
    repeats: int

    def format(self, digits: int = 1, unit: str = "") -> str:
        """`12.3 s (11.9 to 13.0)`; without repeats the value alone."""
        spread = f" ({self.low:,.{digits}f} to {self.high:,.{digits}f})" if self.repeats > 1 else ""
        return f"{self.median:,.{digits}f}{' ' * bool(unit)}{unit}{spread}"


def interleave(sides: Mapping[str, Callable[[], Result]], repeats: int) -> dict[str, list[Result]]:
    """Call every side `repeats` times, in turn. Results by side, by round."""
    results: dict[str, list[Result]] = {name: [] for name in sides}
    for order in draw_orders(list(sides), repeats):
        for name in order:
            results[name].append(sides[name]())
    return results


def draw_orders(sides: Sequence[Item], rounds: int, seed: int = 1) -> Iterator[list[Item]]:
    """The order of each round: drawn, reversed, drawn, reversed, …

    The default seed's order of two sides (AB BA BA AB BA AB) is the one, of those of six seeds, that machines which
    swing slowly disturb least (`tests/comparing/test_false_positives.py`, "slow waves").
    """
    rng = random.Random(seed)
    order: list[Item] = []
    for number in range(rounds):
        order = order[::-1] if number % 2 else rng.sample(sides, len(sides))
        yield order


def find_median(values: Sequence[float], confidence: float = 0.95) -> Median:
    """Median of one or more values with the narrowest order-statistic interval of that confidence, else the range."""
    ordered = sorted(values)
    count = len(ordered)
    depth, below = 1, 1  # below: number of the 2^count outcomes with fewer than `depth` values below the median
    while depth < (count + 1) // 2 and 1 - 2 * (further := below + math.comb(count, depth)) / 2**count >= confidence:
        depth, below = depth + 1, further
    return Median(statistics.median(ordered), ordered[depth - 1], ordered[-depth], 1 - 2 * below / 2**count, count)


def find_ratio(numerators: Sequence[float], denominators: Sequence[float], confidence: float = 0.95) -> Median:
    """Median of the ratios within each round. Raises ValueError when the two were not measured equally often."""
    return find_median([a / b for a, b in zip(numerators, denominators, strict=True)], confidence)


@dataclass(frozen=True)
class Line:
    """y = intercept + slope * x, and the share of y's variance that it explains."""

    intercept: float
    slope: float
    r_squared: float


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Least squares. Raises StatisticsError below two distinct x."""
    slope, intercept = statistics.linear_regression(x, y)
    mean = statistics.fmean(y)
    total = sum((value - mean) ** 2 for value in y)
    left = sum((value - intercept - slope * at) ** 2 for at, value in zip(x, y, strict=True))
    return Line(intercept, slope, 1 - left / total if total else 1.0)
