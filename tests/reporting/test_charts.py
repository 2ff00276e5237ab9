"""What each chart draws, read back from its axes, against values computed by hand."""

import json
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes

from training.metrics import names
from training.reporting.charts import describe_loss, draw_lines, draw_loss, draw_phases
from training.reporting.run_reader import Run, load_run

RATE = names.PERF_TOKENS_PER_SECOND


@pytest.fixture
def ax() -> Iterator[Axes]:
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def write_run(path: Path, key: str, values: list[float]) -> Run:
    lines = [json.dumps({"step": step, key: value}) for step, value in enumerate(values, start=1)]
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return load_run(path)


def get_line(ax: Axes, label: str) -> list[float]:
    return next(np.asarray(line.get_ydata()).tolist() for line in ax.get_lines() if line.get_label() == label)


def test_loss_is_drawn_raw_and_its_mean_grows_its_window(tmp_path: Path, ax: Axes):
    run = write_run(tmp_path, names.TRAIN_LOSS, [8.0, 6.0, 4.0, 2.0, 4.0])
    assert draw_loss(ax, run.metrics, 5.0) == 1
    assert get_line(ax, "training") == [8.0, 6.0, 4.0, 2.0, 4.0]
    assert get_line(ax, "mean of the last 5 points") == [8.0, 6.0, 4.0, 2.0, 3.0]
    assert [text.get_text() for text in ax.texts] == ["unigram entropy 5.000"]


def test_a_loss_that_is_not_finite_is_marked_at_its_step(tmp_path: Path, ax: Axes):
    run = write_run(tmp_path, names.TRAIN_LOSS, [3.0, float("nan"), 2.0, float("nan")])
    draw_loss(ax, run.metrics, None)
    marks = next(line for line in ax.get_lines() if line.get_label() == "not finite (2)")
    assert np.asarray(marks.get_xdata()).tolist() == [2, 4]


def test_without_a_measurement_nothing_is_drawn(tmp_path: Path, ax: Axes):
    run = write_run(tmp_path, "other", [1.0])
    assert draw_loss(ax, run.metrics, 5.0) == 0
    assert draw_phases(ax, run, share=False) == 0
    assert draw_lines(ax, run, {RATE: ("tokens/s", "blue")}, "tokens/s") == 0
    assert not ax.get_lines() and describe_loss(run.metrics) == []


def test_lines_begin_at_zero_and_leave_room_above(tmp_path: Path, ax: Axes):
    run = write_run(tmp_path, RATE, [50.0, 100.0, 75.0])
    assert draw_lines(ax, run, {RATE: ("tokens/s", "blue")}, "tokens/s") == 1
    assert ax.get_ylim() == pytest.approx((0, 112))


def test_one_value_far_above_all_others_cuts_the_axis_and_is_counted(tmp_path: Path, ax: Axes):
    run = write_run(tmp_path, RATE, [10.0] * 200 + [1000.0])
    draw_lines(ax, run, {RATE: ("tokens/s", "blue")}, "tokens/s")
    assert ax.get_ylim() == pytest.approx((0, 11.5))
    assert "1 point(s) above the axis, highest 1,000" in ax.get_xlabel()


def test_loss_is_described_by_its_first_last_and_lowest_values(tmp_path: Path):
    run = write_run(tmp_path, names.TRAIN_LOSS, [8.0, 2.0, 4.0, float("nan")])
    rows = dict(describe_loss(run.metrics, 5.0))
    assert rows["first"] == "8.0000"
    assert rows["last (step 4)"] == "not finite; 4.0000 at step 3"
    assert rows["lowest (step 2)"] == "2.0000"
    assert rows["points not finite"] == "1 of 4"
    assert rows["unigram entropy"] == "5.0000"
