"""Losses of runs that log at different intervals: a logged loss is the mean since the one before."""

import numpy as np
import pytest

from tests.reporting.conftest import to_lines
from training.comparing.losses import Curve, compare_losses, judge_curves
from training.comparing.sides import load_side
from training.metrics import names

STEPS, TOKENS = 400, 512.0


def make_losses(seed):
    """Of each step: falling, and noisy."""
    steps = np.arange(1, STEPS + 1)
    return 3.0 + 4.0 * np.exp(-steps / 60) + np.random.default_rng(seed).normal(0, 0.3, STEPS)


def log(losses, every):
    """As the Trainer does: the first step, then the mean since the last record."""
    ends = [1, *range(every, STEPS + 1, every)] if every > 1 else range(1, STEPS + 1)
    means, before = [], 0
    for end in ends:
        means.append(losses[before:end].mean())
        before = end
    return Curve(TOKENS * np.array(ends, dtype=float), np.array(means))


@pytest.mark.parametrize("every", [7, 20, 50])
def test_means_between_records_do_not_depend_on_how_often_is_logged(every):
    losses = make_losses(0)
    fine, coarse = log(losses, 1), log(losses, every)
    edges = coarse.x
    by_hand = [
        losses[int(start / TOKENS) : int(end / TOKENS)].mean() for start, end in zip(edges, edges[1:], strict=False)
    ]
    np.testing.assert_allclose(fine.means(edges), by_hand)
    np.testing.assert_allclose(coarse.means(edges), by_hand)


@pytest.mark.parametrize("runs", [1, 4])
def test_equal_training_is_no_difference_however_often_each_side_logs(runs):
    losses = [make_losses(seed) for seed in range(runs)]
    a, b = ([log(one, every) for one in losses] for every in (1, 20))
    for one, other in ((a, b), (b, a)):
        found = judge_curves(one, other, alpha=0.05, paired=runs > 1)
        assert found.estimate == pytest.approx(0.0, abs=1e-9) and not found.differs
    shifted = [Curve(curve.x, curve.y + 0.2) for curve in b]
    assert judge_curves(a, shifted, alpha=0.05, paired=runs > 1).estimate == pytest.approx(0.2)


def test_the_table_takes_the_same_stretch_of_every_run(tmp_path):
    losses = make_losses(0)
    runs = []
    for name, every in (("a", 1), ("b", 20)):
        curve = log(losses, every)
        records = [
            {"step": int(x / TOKENS), "epoch": 0.1, "time_s": x, "tokens": x, names.TRAIN_LOSS: y}
            for x, y in zip(curve.x.tolist(), curve.y.tolist(), strict=True)
        ]
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(to_lines(records))
        runs.append(load_side(name, [tmp_path / name]))
    found = compare_losses(*runs, alpha=0.05)[0]
    assert found.b == pytest.approx(found.a, abs=0.03) and found.a[-1] < found.a[0] - 0.1
    assert found.b[-1] == pytest.approx(losses[-100:].mean())  # five records of the coarser run
