import math

import numpy as np
import pytest

from data_prep.errors import UserError
from training.metrics import names
from training.reporting.run_reader import MetricsLog, load_run

from .conftest import SUMMARY, make_records, to_lines


def test_reads_columns_and_keeps_unknown_keys(write_run):
    records = [{"step": 1, "a/new_key": 3, "label": "text"}, {"step": 2, names.TRAIN_LOSS: 2.5, "a/new_key": 4}]
    run = load_run(write_run(records))
    assert run.series("a/new_key").values.tolist() == [3, 4]
    assert run.series(names.TRAIN_LOSS).steps.tolist() == [2]
    assert len(run.series("never/logged")) == 0
    assert run.metrics.record == records[1]


def test_torn_last_line_is_left_out_and_said(write_run):
    run_dir = write_run(make_records(30))
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "train/lo')
    run = load_run(run_dir)
    assert run.metrics.last_step == 30
    assert any("incomplete" in note for note in run.notes)


def test_bad_lines_in_the_middle_are_counted_and_located(write_run):
    run_dir = write_run([])
    lines = [b'{"step": 1}', b"\xff\xfe garbage", b"[1]", b'{"step": 99999999999999999999}', b"", b'{"step": 3}']
    (run_dir / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    run = load_run(run_dir)
    assert run.metrics.steps.tolist() == [1, 3]
    assert any("3 unreadable line(s)" in note and "line 2" in note for note in run.notes)


def test_null_nan_and_infinity_are_points_without_a_value(write_run):
    run_dir = write_run([])
    (run_dir / "metrics.jsonl").write_text(
        '{"step": 1, "train/loss": null}\n{"step": 2, "train/loss": NaN}\n'
        '{"step": 3, "train/loss": -Infinity}\n{"step": 3, "train/loss": 1'
        + "0" * 400
        + '}\n{"step": 4, "train/loss": 1.5}\n{"step": 5}\n'
    )
    loss = load_run(run_dir).series(names.TRAIN_LOSS)
    assert loss.steps.tolist() == [1, 2, 3, 3, 4]
    assert [math.isnan(value) for value in loss.values] == [True, True, True, True, False]
    assert loss.last() == 1.5


def test_poll_reads_only_what_is_new_and_completes_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    assert log.poll() == 0  # the file is not there yet
    path.write_text('{"step": 1, "x": 1}\n{"step": 2, ')
    assert log.poll() == 1 and log.torn
    with path.open("a") as file:
        file.write('"x": 2}\n')
    assert log.poll() == 1 and not log.torn
    assert log.poll() == 0
    assert log.series("x").values.tolist() == [1, 2]


def test_poll_starts_again_when_a_resume_cut_the_file_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(to_lines([{"step": step, "x": step} for step in range(1, 6)]))
    log = MetricsLog(path)
    log.poll()
    # longer than before, so that the size alone does not give it away
    path.write_text(to_lines([{"step": step, "x": -step} for step in range(1, 20)]))
    log.poll()
    assert log.series("x").values.tolist() == [-step for step in range(1, 20)]


def test_later_lines_replace_steps_that_were_trained_again(write_run):
    steps = [1, 2, 3, 4, 2, 3]
    run = load_run(write_run([{"step": step, "x": row} for row, step in enumerate(steps)]))
    assert run.metrics.steps.tolist() == [1, 2, 2, 3]
    assert run.series("x").values.tolist() == [0, 1, 4, 5]
    assert any("2 record(s) replaced" in note for note in run.notes)


def test_keys_restrict_what_is_kept(write_run):
    log = MetricsLog(write_run(make_records(50)) / "metrics.jsonl", frozenset({names.TRAIN_LOSS}))
    log.poll()
    assert log.names() == [names.TRAIN_LOSS]
    assert len(log) == 5


def test_run_with_nothing_but_a_config_loads(write_run):
    run = load_run(write_run())
    assert len(run.metrics) == 0 and run.summary is None and run.events == [] and run.ds_config is None
    assert any("nothing has been logged" in note for note in run.notes)


@pytest.mark.parametrize("content", ["", "[]", "{", "null", "\x00"])
def test_broken_json_files_are_left_out_and_said(write_run, content):
    run_dir = write_run(make_records(20))
    for name in ("summary.json", "env.json", "ds_config.json"):
        (run_dir / name).write_text(content)
    (run_dir / "events.jsonl").write_text("{broken\n" + '{"kind": "start"}\n')
    run = load_run(run_dir)
    assert run.summary is None and run.env == {} and run.ds_config is None
    assert run.events == [{"kind": "start"}]
    assert sum("not a JSON object" in note for note in run.notes) == 3


def test_summary_comes_before_events_for_a_recorded_fact(write_run):
    events = [{"kind": "start", "unigram_entropy_nats": 1.0}]
    assert load_run(write_run(events=events, name="a")).recorded("unigram_entropy_nats") == 1.0
    run = load_run(write_run(summary=SUMMARY, events=events, name="b"))
    assert run.recorded("unigram_entropy_nats") == SUMMARY["unigram_entropy_nats"]


def test_paths_that_are_no_run_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        load_run(tmp_path / "nothing")
    with pytest.raises(UserError, match="not a run directory"):
        load_run(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="no such directory"):
        load_run(tmp_path / "file")


def test_series_selects_points():
    log = MetricsLog("unused")
    for step in (10, 20, 30):
        log._take(f'{{"step": {step}, "x": {step / 10}}}'.encode())
    assert log.series("x").after(10).values.tolist() == [2.0, 3.0]
    assert np.array_equal(log.series("x").rows, [0, 1, 2])
