"""Two sides of one configuration come out as different at most 5 times in 100; the power is stated beside it."""

import itertools

import numpy as np
import pytest

from training.benchmark.interleave import draw_orders
from training.comparing.comparison import QUESTIONS, compare
from training.comparing.intervals import ALPHA, find_interval
from training.comparing.page import judge
from training.comparing.sides import Side, load_side

NOISE = 0.02  # relative standard deviation of a run's mean
PAIRS = 300


def _independent(rng, runs):
    return rng.normal(0, NOISE, runs)


def _random_walk(rng, runs):
    return np.cumsum(_independent(rng, runs)) + _independent(rng, runs) / 2


def _slow_waves(rng, runs):
    """A sine with a period of two to eight runs."""
    at = np.arange(runs) / rng.uniform(2, 8) + rng.uniform()
    return NOISE * np.sin(2 * np.pi * at) + _independent(rng, runs) / 2


def _heavy_tails(rng, runs):
    """One run in ten meets a pause, of a Pareto distribution without a variance."""
    return _independent(rng, runs) / 2 + np.log1p((rng.random(runs) < 0.1) * 0.1 * rng.pareto(1.5, runs))


MACHINES = {
    "independent": _independent,
    "random walk": _random_walk,
    "slow waves": _slow_waves,
    "heavy tails": _heavy_tails,
}


def _count_differences(machine, repeats, paired, slower=1.0):
    """Of PAIRS comparisons at the level of the speed question, with runs in the order of `interleave`."""
    rng = np.random.default_rng(0)
    orders = list(draw_orders([0, 1], repeats))
    at = np.array([[2 * i + order.index(side) for i, order in enumerate(orders)] for side in (0, 1)])
    differing = 0
    for _ in range(PAIRS):
        a, b = np.exp(machine(rng, 2 * repeats))[at]
        found = find_interval(a.tolist(), (slower * b).tolist(), alpha=ALPHA / QUESTIONS, paired=paired)
        differing += bool(found.differs)
    return differing


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("repeats", [2, 4, 6])
def test_repeats_in_rounds_raise_few_false_positives(machine, repeats):
    assert _count_differences(MACHINES[machine], repeats, paired=True) <= 0.05 * PAIRS


@pytest.mark.parametrize("repeats", [2, 4, 6])
def test_repeats_raise_few_false_positives(repeats):
    assert _count_differences(_independent, repeats, paired=False) <= 0.05 * PAIRS


def test_power_grows_with_repeats():
    """10 % slower, where runs vary by 2 %: 4 repeats find it 9 times in 10, 6 repeats always."""
    found = [_count_differences(_independent, repeats, paired=False, slower=1.1) / PAIRS for repeats in (2, 4, 6)]
    assert found[0] < 0.5 and found[1] > 0.9 and found[2] > 0.99


def test_whole_pages_raise_few_false_positives(write_timed):
    """Any row of a page counts, over all 35 ways of splitting 8 runs into 4 against 4."""
    levels = np.random.default_rng(1).normal(1.0, 0.02, 8)
    paths = [write_timed(f"runs/{seed}", seed=seed, steps=200, slower=level) for seed, level in enumerate(levels)]
    runs = load_side("A", [paths[0].parent]).runs
    pages = 0
    for others in itertools.combinations(range(1, 8), 3):
        first = tuple(runs[place] for place in (0, *others))
        pair = compare([Side("A", first), Side("B", tuple(run for run in runs if run not in first))]).pairs[0]
        losses = [bool(loss.interval and loss.interval.differs) for loss in pair.losses]
        pages += any([*losses, *(judge(row, "B") in ("B higher", "B lower") for row in pair.rows)])
    assert pages <= 1
