"""A session never writes into an older run, and nothing has moved when it cannot begin."""

import json

import pytest

from data_prep.errors import UserError
from tests.older_run import load, make_older_run
from training.launch import World
from training.run.opening import move_aside, open_run
from training.run_dir import RunDir

ONE_RANK = World("python", 0, 0, 1, 1)


@pytest.fixture
def run_dir(tmp_path):
    return make_older_run(tmp_path / "run")


def test_a_new_run_moves_each_older_one_aside_whole(run_dir):
    for number in (1, 2):
        open_run(load(), run_dir, ONE_RANK, None)
        kept = run_dir.path.with_name(f"run.old-{number}")
        assert kept.is_dir() and not (run_dir.path / "checkpoint-6").exists()
    first = run_dir.path.with_name("run.old-1")
    assert json.loads((first / "summary.json").read_text()) == {"steps": 6}
    assert (first / "checkpoint-6" / "optimizer.pt").read_bytes() == b"\x06"


@pytest.mark.parametrize("error", [UserError("wandb: no such project"), OSError("disk full")])
def test_an_older_run_gets_its_name_back_when_a_tracker_does_not_start(run_dir, error):
    def fail():
        (run_dir.path / "wandb_id").write_text("x")
        raise error

    with pytest.raises(UserError):
        open_run(load(), run_dir, ONE_RANK, None, fail)
    assert [path.name for path in run_dir.path.parent.iterdir()] == ["run"]
    assert json.loads(run_dir.summary.read_text()) == {"steps": 6}
    assert not (run_dir.path / "wandb_id").exists()


def test_a_resumed_run_is_not_cut_when_a_tracker_does_not_start(run_dir):
    def fail():
        raise UserError("wandb: no such project")

    with pytest.raises(UserError):
        open_run(load(), run_dir, ONE_RANK, run_dir.path / "checkpoint-3", fail)
    assert len(run_dir.metrics.read_text().splitlines()) == 2
    assert (run_dir.path / "checkpoint-6").is_dir() and run_dir.summary.exists()


def test_an_empty_directory_is_nobody_s_run(tmp_path):
    (tmp_path / "run").mkdir()
    move_aside(RunDir(tmp_path / "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_checkpoint_of_another_run_starts_a_new_one_with_its_records(run_dir, tmp_path):
    other = RunDir(tmp_path / "other")
    other.append_metrics({"step": 99})
    open_run(load(), other, ONE_RANK, run_dir.path / "checkpoint-3")
    assert [json.loads(line)["step"] for line in other.metrics.read_text().splitlines()] == [3]
    assert (tmp_path / "other.old-1" / "metrics.jsonl").exists()
    assert (run_dir.path / "checkpoint-6").exists() and run_dir.summary.exists()


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="training.output_dir: .*file/run cannot be written"):
        open_run(load(), RunDir(tmp_path / "file" / "run"), ONE_RANK, None)
