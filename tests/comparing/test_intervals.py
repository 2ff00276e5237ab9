"""Intervals against textbook formulas and against simulation."""

import math

import numpy as np
import pytest

from training.comparing.intervals import find_interval

T_975 = {4: 2.776, 3: 3.182}  # of Student's t, from its table


def test_repeats_give_welchs_interval_of_the_ratio():
    """Equal spreads and numbers: Welch's degrees are those of the pooled test, 2 (n - 1)."""
    a, b = [10.0, 11.0, 12.1], [20.0, 22.0, 24.2]
    found = find_interval(a, b)
    step = math.log(1.1)  # logs are -step, 0, step around their means: variance step^2
    error = math.sqrt(2 * step**2 / 3)
    assert found.degrees == pytest.approx(4) and found.estimate == pytest.approx(2.0)
    assert found.low is not None and found.high is not None and found.detectable is not None
    assert math.log(found.high / 2) == pytest.approx(T_975[4] * error, rel=1e-3)
    assert math.log(2 / found.low) == pytest.approx(T_975[4] * error, rel=1e-3)
    assert math.log1p(found.detectable) == pytest.approx((T_975[4] + 0.941) * error, rel=1e-3)  # t(0.8) of 4: 0.941
    assert found.differs
    turned = find_interval(b, a)
    assert turned.low == pytest.approx(1 / found.high) and turned.high == pytest.approx(1 / found.low)


def test_a_drift_over_rounds_cancels():
    a = [1.0, 3.0, 2.0, 5.0]
    b = [1.1 * 1.01, 3.3 / 1.01, 2.2 * 1.01, 5.5 / 1.01]
    assert not find_interval(a, b).differs
    paired = find_interval(a, b, paired=True)
    deviation = math.log(1.01) * math.sqrt(4 / 3)  # of +-log 1.01 around 0, over n - 1
    assert paired.differs and paired.estimate == pytest.approx(1.1) and paired.high is not None
    assert math.log(paired.high / 1.1) == pytest.approx(T_975[3] * deviation / 2, rel=1e-3)


def test_differences_of_losses():
    found = find_interval([3.0, 3.2], [2.0, 2.2], absolute=True)
    assert found.absolute and found.estimate == pytest.approx(-1.0) and found.differs
    assert found.low == pytest.approx(-1.0 - 4.303 * math.sqrt(0.02), rel=1e-3)  # t(0.975) of 2: 4.303


@pytest.mark.parametrize(("a", "b"), [([2.0], [3.0]), ([2.0], [3.0, 3.1])])
def test_without_repeats_there_is_a_ratio_and_no_interval(a, b):
    found = find_interval(a, b)
    assert found.estimate == pytest.approx(np.exp(np.log(b).mean()) / 2.0)
    assert (found.low, found.high, found.detectable, found.differs) == (None, None, None, None)


def test_constants_differ_exactly():
    """Memory may be the same in every run of a side; pytest turns a warning of scipy into an error."""
    for paired in (False, True):
        memory = find_interval([2.0] * 3, [3.0] * 3, paired=paired)
        assert memory.low == memory.high == pytest.approx(1.5) and memory.differs and memory.detectable == 0.0
        assert find_interval([2.0] * 3, [2.0] * 3, paired=paired).differs is False
    one_varies = find_interval([2.0] * 3, [2.0, 3.0, 4.0])
    assert one_varies.degrees == pytest.approx(2) and one_varies.differs is False


def test_equal_repeats_do_not_differ():
    assert find_interval([2.0, 2.1, 2.2], [2.0, 2.1, 2.2]).differs is False
    same = find_interval([3.0, 3.0], [3.0, 3.0], absolute=True)
    assert (same.estimate, same.differs) == (0.0, None)


def test_what_cannot_be_compared():
    with pytest.raises(ValueError, match="0 and 1"):
        find_interval([], [1.0])
    with pytest.raises(ValueError, match="1 and 2"):
        find_interval([1.0], [1.0, 2.0], paired=True)
    assert math.isnan(find_interval([0.0, 1.0], [1.0, 2.0]).estimate)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("runs", [2, 3, 6])
@pytest.mark.parametrize("heavy", [False, True])
def test_equal_sides_differ_at_most_5_times_in_100(runs, paired, heavy):
    """Runs whose level varies by 5 % from run to run, normal or with heavy tails (Student's t of 3 degrees)."""
    rng = np.random.default_rng(runs)
    trials, differing = 800, 0
    for _ in range(trials):
        noise = rng.standard_t(3, (2, runs)) if heavy else rng.normal(size=(2, runs))
        a, b = np.exp(0.05 * noise)
        differing += bool(find_interval(a.tolist(), b.tolist(), paired=paired).differs)
    # 5 % and three standard errors of a share measured in so many trials
    assert differing / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_a_detectable_change_is_found_8_times_in_10():
    rng = np.random.default_rng(0)

    def sides(factor: float) -> tuple[list[float], list[float]]:
        a, b = np.exp(0.05 * rng.normal(size=(2, 6)))
        return a.tolist(), (factor * b).tolist()

    shown = np.median([find_interval(*sides(1.0)).detectable or math.inf for _ in range(200)])
    found = np.mean([bool(find_interval(*sides(1 + float(shown))).differs) for _ in range(400)])
    assert 0.7 <= found <= 0.9
