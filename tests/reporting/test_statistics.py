import numpy as np
import pytest

from training.reporting.run_reader import Series
from training.reporting.statistics import (
    compute_statistics,
    downsample_mean,
    downsample_min_max,
    find_upper_limit,
    mean_per_step,
    mean_rate,
    recent_part,
    recent_window,
    smooth,
    smoothing_window,
)


def make_series(values, steps=None):
    values = np.asarray(values, dtype=np.float64)
    steps = np.arange(1, len(values) + 1) if steps is None else np.asarray(steps)
    return Series("x", np.arange(len(values)), steps, values)


def test_statistics_by_hand():
    # 4 points at steps 500, 1000, 1500, 2000: recent are those after step 1000
    stats = compute_statistics(make_series([8.0, 2.0, 4.0, np.nan, 3.0], [500, 1000, 1500, 1700, 2000]))
    assert stats is not None
    assert (stats.first, stats.last, stats.last_step) == (8.0, 3.0, 2000)
    assert (stats.minimum, stats.minimum_step, stats.num_not_finite) == (2.0, 1000, 1)
    assert (stats.recent_steps, stats.recent_points) == (1000, 2)
    assert (stats.recent_mean, stats.recent_std) == (3.5, 0.5)
    assert stats.recent_slope is None


def test_slope_is_per_1000_steps():
    stats = compute_statistics(make_series(10 - 0.002 * np.arange(0, 4000, 10), np.arange(0, 4000, 10)))
    assert stats is not None and stats.recent_slope == pytest.approx(-2.0)


def test_no_finite_point_has_no_statistics():
    assert compute_statistics(make_series([np.nan])) is None
    assert compute_statistics(make_series([])) is None


@pytest.mark.parametrize(("last_step", "window"), [(5000, 1000), (1001, 1000), (1000, 500), (600, 300), (1, 1)])
def test_recent_is_1000_steps_or_the_second_half(last_step, window):
    assert recent_window(last_step) == window
    assert len(recent_part(make_series(np.zeros(last_step)))) == window


def test_smooth_equals_a_plain_loop():
    values = np.random.default_rng(0).normal(5, 0.1, 301)
    window = smoothing_window(len(values))
    expected = []
    for i in range(len(values)):
        width = min(window, 1 + i // 4)
        expected.append(values[i + 1 - width : i + 1].mean())
    np.testing.assert_allclose(smooth(values), expected)


def test_one_spike_does_not_lift_the_smoothed_curve():
    values = np.full(1000, 3.0)
    values[500] = 1e6
    assert smooth(values).max() < 3.1


def test_downsampling_200k_points_keeps_the_extremes():
    values = np.random.default_rng(1).normal(3, 0.1, 200_000)
    values[77_777], values[123_456], values[5] = 900.0, -900.0, np.nan
    series = make_series(values)
    small = downsample_min_max(series, 1600)
    assert len(small) <= 1600
    assert (small.values.max(), small.values.min()) == (900.0, -900.0)
    assert small.steps[0] == 1 and small.steps[-1] == 200_000
    assert (np.diff(small.steps) > 0).all()
    # every bucket's own extremes are there, not only the global ones
    edges = np.linspace(0, 199_999, 800).astype(int)
    finite = series.finite().values
    for begin, end in zip(edges[:50], edges[1:51], strict=True):
        assert finite[begin:end].max() in small.values


def test_downsampling_leaves_short_series_alone():
    assert downsample_min_max(make_series([1, np.nan, 2]), 100).values.tolist() == [1, 2]
    assert len(downsample_min_max(make_series([]), 100)) == 0


def test_bucket_means_keep_sums_of_parts():
    matrix = np.random.default_rng(2).random((10_007, 4))
    steps, means = downsample_mean(np.arange(1, 10_008), matrix, 240)
    assert means.shape == (240, 4) and steps[-1] == 10_007
    _, totals = downsample_mean(np.arange(1, 10_008), matrix.sum(axis=1, keepdims=True), 240)
    np.testing.assert_allclose(means.sum(axis=1), totals[:, 0])


def test_upper_limit_cuts_only_what_flattens_the_rest():
    values = np.full(200, 3.0)
    assert find_upper_limit(values) is None
    assert find_upper_limit(np.linspace(9, 3, 200)) is None
    values[50] = 1000.0
    assert find_upper_limit(values) == pytest.approx(3.45)
    assert find_upper_limit(values[:10]) is None
    assert find_upper_limit(np.full(50, np.nan)) is None


def test_means_weigh_lines_by_their_steps():
    # 10 steps at 100 ms, then 30 steps at 200 ms
    series = make_series([100.0, 200.0], [10, 40])
    assert mean_per_step(series) == pytest.approx(175.0)
    # 1000 tokens a step: 10 s at 10 steps/s ... = 40,000 tokens in 1 s + 6 s
    rates = make_series([10_000.0, 5_000.0], [10, 40])
    assert mean_rate(rates) == pytest.approx(40_000 / (1 + 6))
    assert mean_rate(make_series([np.nan])) is None
