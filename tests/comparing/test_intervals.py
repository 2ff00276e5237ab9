"""Intervals against textbook values and against simulation."""

import math

import numpy as np
import pytest

from training.comparing.intervals import Windows, find_interval, find_t_quantile


def run(values):
    return Windows(np.asarray(values, dtype=float), np.ones(len(values)))


def lengths(rng, count, level=1.0, noise=0.05):
    return run(level * np.exp(rng.normal(0, noise, count)))


@pytest.mark.parametrize(
    ("probability", "degrees", "expected"),  # from the table of Student's t
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.995, 4, 4.604),
        (0.975, 9, 2.262),
        (0.8, 10, 0.879),
        (0.975, 120, 1.980),
    ],
)
def test_t_quantiles_are_those_of_the_table(probability, degrees, expected):
    assert find_t_quantile(probability, degrees) == pytest.approx(expected, abs=0.001)
    assert find_t_quantile(1 - probability, degrees) == pytest.approx(-expected, abs=0.001)


def test_repeats_give_welchs_interval():
    a, b = np.array([10.0, 11, 12, 10.5, 11.5]), np.array([20.0, 21, 19, 20.5, 20.2])
    found = find_interval([run([x]) for x in a], [run([x]) for x in b])
    se_a, se_b = (side.std(ddof=1) / side.mean() / len(side) ** 0.5 for side in (a, b))
    degrees = (se_a**2 + se_b**2) ** 2 / (se_a**4 / 4 + se_b**4 / 4)
    reach = find_t_quantile(0.975, degrees) * math.hypot(se_a, se_b)
    assert found.estimate == pytest.approx(b.mean() / a.mean())
    assert found.degrees == pytest.approx(degrees, rel=0.1)
    assert math.log(found.high / found.low) == pytest.approx(2 * reach, rel=0.1)  # a bootstrap, so about
    assert found.differs


def test_a_paired_drift_cancels():
    rounds = np.array([1.0, 3.0, 2.0, 5.0])
    a, b = [run([x]) for x in rounds], [run([1.1 * x]) for x in rounds]
    assert not find_interval(a, b).differs
    paired = find_interval([run([x]) for x in rounds / 2.75], [run([y]) for y in 1.1 * rounds / 2.75], paired=True)
    assert paired.differs and paired.low == pytest.approx(1.1) == paired.high


def test_means_are_weighted():
    assert Windows(np.array([1.0, 4.0]), np.array([3.0, 1.0])).mean() == 1.75


def test_the_quarters_of_one_run_by_hand():
    """Four quarters 1, 1, 1, 5 of two windows each: variance of disjoint quarters 4, drift 4."""
    deviations = run([1, 1, 1, 1, 1, 1, 5, 5]).part_deviations()
    assert len(deviations) == 7
    assert deviations.std() == pytest.approx(4.0)  # the drift: larger than the spread
    flat = run([1, 5, 1, 5, 5, 1, 5, 1]).part_deviations()  # no drift: overlapping pairs 3 3 3 5 3 3 3
    assert flat.std() == pytest.approx(np.std([3, 3, 3, 5, 3, 3, 3]) * math.sqrt(4 / 3))


def test_too_few_windows_have_no_interval():
    found = find_interval([run([1.0] * 7)], [run([1.0] * 20)])
    assert (found.low, found.high, found.detectable, found.differs) == (None, None, None, None)
    assert find_interval([run([1.0] * 8)], [run([1.0] * 8)]).differs is False


def test_one_run_takes_the_spread_of_the_others_repeats_when_that_is_wider():
    rng = np.random.default_rng(0)
    alone = lengths(rng, 1000, noise=0.001)
    repeats = [lengths(rng, 1000, level, 0.001) for level in (0.9, 1.0, 1.1)]
    found = find_interval([alone], repeats)
    assert not found.differs and found.detectable > 0.3
    assert find_interval([alone], repeats[:1]).detectable < 0.06  # the allowance from run to run
    assert alone.part_deviations(0.01).std() == pytest.approx(0.01)


def test_a_difference_instead_of_a_ratio():
    found = find_interval([run([0.0]), run([0.2])], [run([-1.0]), run([-1.2])], absolute=True)
    assert found.estimate == pytest.approx(-1.2)
    assert found.low < -1.2 < found.high and found.high - found.estimate == pytest.approx(found.estimate - found.low)


def test_nothing_to_compare():
    with pytest.raises(ValueError):
        find_interval([], [run([1.0])])
    with pytest.raises(ValueError):
        find_interval([run([1.0])], [run([1.0])] * 2, paired=True)
    nothing = find_interval([run([0.0] * 9)], [run([1.0] * 9)])
    assert math.isnan(nothing.estimate) and nothing.differs is None


def test_what_it_says_it_could_show_it_shows_8_times_in_10():
    rng = np.random.default_rng(2)
    shown = np.median([find_interval(*sides(rng, 1.0)).detectable for _ in range(100)])
    found = np.mean([bool(find_interval(*sides(rng, 1 + shown)).differs) for _ in range(300)])
    assert found == pytest.approx(0.8, abs=0.08)


def sides(rng, level):
    """Six runs each, 2 % from run to run."""
    return [[lengths(rng, 20, x * np.exp(rng.normal(0, 0.02))) for _ in range(6)] for x in (1.0, level)]
