"""The run directory stays readable whatever happens to the run that writes it."""

import json

from training.run_dir import RunDir, write_text_atomic


def steps_of(run_dir: RunDir) -> list[int]:
    return [json.loads(line)["step"] for line in run_dir.metrics.read_text().splitlines()]


def test_nan_and_infinity_become_null(tmp_path):
    run_dir = RunDir(tmp_path)
    run_dir.append_metrics({"step": 1, "train/loss": float("nan"), "deep": {"list": [float("inf"), 1.5]}})
    assert json.loads(run_dir.metrics.read_text()) == {"step": 1, "train/loss": None, "deep": {"list": [None, 1.5]}}


def test_a_resume_drops_later_records_and_a_torn_line(tmp_path):
    run_dir = RunDir(tmp_path)
    for step in (10, 20, 30):
        run_dir.append_metrics({"step": step})
    with run_dir.metrics.open("a") as file:
        file.write('{"step": 40, "train/lo')
    assert run_dir.cut_metrics_after(20) == 2
    assert steps_of(run_dir) == [10, 20]
    run_dir.append_metrics({"step": 30})
    assert steps_of(run_dir) == [10, 20, 30]


def test_starting_anew_empties_the_metrics(tmp_path):
    run_dir = RunDir(tmp_path)
    run_dir.append_metrics({"step": 0})
    assert run_dir.cut_metrics_after(0) == 1
    assert run_dir.metrics.read_text() == ""


def test_an_atomic_write_leaves_no_partial_file_and_makes_folders(tmp_path):
    target = tmp_path / "new" / "file.txt"
    write_text_atomic(target, "one")
    write_text_atomic(target, "two")
    assert target.read_text() == "two"
    assert list(target.parent.iterdir()) == [target]
