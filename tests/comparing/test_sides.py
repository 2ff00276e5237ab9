"""Which runs form a side, and which windows of a run count, against values written by hand."""

import json
from pathlib import Path

import pytest

from data_prep.errors import UserError
from training.comparing.sides import find_metrics, find_windows, first_counted_step, load_side
from training.metrics import names
from training.reporting.run_reader import Run, load_run


def write_run(path: Path, records: list[dict], events: list[dict] | None = None) -> Run:
    path.mkdir(parents=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events or []))
    return load_run(path)


def timed(step: int, step_ms: float, **more: float) -> dict:
    return {"step": step, names.PERF_STEP_MS: step_ms, **more}


def test_first_tenth_and_at_least_two_steps_are_left_out(tmp_path: Path):
    short = write_run(tmp_path / "short", [timed(step, 1.0) for step in range(1, 11)])
    long = write_run(tmp_path / "long", [timed(step, 1.0) for step in range(1, 101)])
    assert first_counted_step(short, None) == 2
    assert first_counted_step(long, None) == 10
    assert first_counted_step(long, 7) == 7


def test_mean_of_times_is_weighted_by_steps_and_of_rates_by_seconds(tmp_path: Path):
    rate = names.PERF_TOKENS_PER_SECOND
    run = write_run(
        tmp_path / "a", [timed(1, 9.0, **{rate: 9.0}), timed(3, 10.0, **{rate: 100.0}), timed(7, 40.0, **{rate: 25.0})]
    )
    times, rates = find_windows(run, names.PERF_STEP_MS, 1), find_windows(run, rate, 1)
    assert times is not None and rates is not None
    assert times.mean() == pytest.approx((2 * 10 + 4 * 40) / 6)
    assert rates.mean() == pytest.approx((20 * 100 + 160 * 25) / 180)


def test_memory_is_one_value_its_highest(tmp_path: Path):
    key = names.PERF_MEMORY_PEAK_GIB
    run = write_run(tmp_path / "a", [{"step": step, key: 1.0 + step % 3} for step in range(1, 9)])
    windows = find_windows(run, key)
    assert windows is not None and windows.values.tolist() == [3.0]


def test_no_window_is_none(tmp_path: Path):
    run = write_run(tmp_path / "a", [timed(1, 1.0), timed(2, 1.0)])
    assert find_windows(run, names.PERF_STEP_MS, 5) is None


def test_first_steps_after_a_resume_are_left_out(tmp_path: Path):
    records = [timed(step, float(step)) for step in range(1, 11)]
    run = write_run(tmp_path / "a", records, [{"kind": "resume", "step": 5}])
    windows = find_windows(run, names.PERF_STEP_MS)
    assert windows is not None and windows.values.tolist() == [3.0, 4.0, 5.0, 8.0, 9.0, 10.0]


def test_only_what_every_run_measured_is_compared(tmp_path: Path):
    write_run(tmp_path / "a", [timed(1, 1.0, **{names.PERF_MFU_PCT: 40.0})])
    write_run(tmp_path / "b", [timed(1, 1.0)])
    sides = [load_side("A", [tmp_path / "a"]), load_side("B", [tmp_path / "b"])]
    assert find_metrics(sides) == [names.PERF_STEP_MS]


def test_a_folder_of_runs_is_their_side(tmp_path: Path):
    for name in ("s2", "s1"):
        write_run(tmp_path / "runs" / name, [timed(1, 1.0)])
    side = load_side("A", [tmp_path / "runs"])
    assert [run.path.name for run in side.runs] == ["s1", "s2"]
    assert side.describe() == f"A: {tmp_path}/runs/s1 and 1 more"


def test_a_run_that_logged_nothing_is_named(tmp_path: Path):
    write_run(tmp_path / "a", [])
    with pytest.raises(UserError, match="nothing was logged"):
        load_side("A", [tmp_path / "a"])
