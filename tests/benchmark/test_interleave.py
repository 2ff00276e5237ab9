"""Orders, medians and intervals, against numpy and against simulation."""

from collections import Counter

import numpy as np
import pytest

from training.benchmark.interleave import draw_orders, find_median, find_ratio, fit_line, interleave


def test_each_second_round_is_the_reverse_of_the_one_before_and_all_orders_come_up():
    orders = list(draw_orders("abc", 2000))
    assert all(second == first[::-1] for first, second in zip(orders[::2], orders[1::2], strict=True))
    counts = Counter(map("".join, orders))
    assert len(counts) == 6 and min(counts.values()) > 2000 / 6 * 0.8
    assert orders == list(draw_orders("abc", 2000)) and orders != list(draw_orders("abc", 2000, seed=2))


def test_results_stay_with_their_side_and_round():
    calls: list[str] = []
    results = interleave(
        {"a": lambda: calls.append("a") or len(calls), "b": lambda: calls.append("b") or len(calls)}, 3
    )
    assert calls == sum(draw_orders(["a", "b"], 3), [])
    assert results == {side: [at + 1 for at, call in enumerate(calls) if call == side] for side in "ab"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], (3, 3, 3, 0.0)),
        ([5.0, 1.0, 3.0], (3, 1, 5, 0.75)),  # 1 - 2/8: three values cover the median three times in four
        ([6.0, 1, 2, 3, 4, 5], (3.5, 1, 6, 1 - 2 / 64)),
        (list(range(1, 10)), (5, 2, 8, 1 - 2 * (1 + 9) / 512)),
    ],
)
def test_median_and_its_interval(values, expected):
    found = find_median(values)
    assert (found.median, found.low, found.high, found.coverage) == pytest.approx(expected)


def test_the_interval_covers_the_true_median_as_often_as_it_says():
    samples = np.random.default_rng(0).lognormal(0, 1, (4000, 12))  # median 1, far from normal
    found = [find_median(sample.tolist()) for sample in samples]
    covered = np.mean([one.low <= 1 <= one.high for one in found])
    assert found[0].coverage >= 0.95
    assert covered == pytest.approx(found[0].coverage, abs=0.01)


def test_a_drift_that_both_sides_share_is_not_in_the_ratio():
    drift = [4.0, 1.0, 8.0, 2.0]
    ratio = find_ratio([3 * value for value in drift], drift)
    assert (ratio.median, ratio.low, ratio.high) == (3, 3, 3)
    with pytest.raises(ValueError):
        find_ratio([1.0], [1.0, 2.0])


def test_a_median_shows_its_spread_only_where_there_is_one():
    assert find_median([1.0, 2.5, 3.0]).format(1, "ms") == "2.5 ms (1.0 to 3.0)"
    assert find_median([1234.0]).format(0) == "1,234"


def test_the_line_is_that_of_numpy():
    x = np.array([10.0, 30, 100, 300])
    y = 2 + 0.5 * x + np.array([1, -2, 3, -1])
    line = fit_line(x.tolist(), y.tolist())
    slope, intercept = np.polyfit(x, y, 1)
    assert (line.slope, line.intercept) == pytest.approx((slope, intercept))
    assert line.r_squared == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
