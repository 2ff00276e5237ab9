"""Where a session starts: the checkpoint that it goes on from, checked, or none."""

import json

import pytest

from data_prep.errors import UserError
from tests.older_run import load, make_older_run
from training.launch import World
from training.run.opening import open_run
from training.run.session import find_start
from training.run_dir import RunDir

ONE_RANK = World("python", 0, 0, 1, 1)


@pytest.fixture
def run_dir(tmp_path):
    return make_older_run(tmp_path / "run")


def test_auto_goes_on_from_the_latest_whole_one_and_puts_a_broken_one_in_quarantine(run_dir):
    (run_dir.path / "checkpoint-6" / "optimizer.pt").write_bytes(b"!")
    two_ranks = World("torchrun", 0, 0, 2, 2)
    start = find_start(load("--resume", "auto"), run_dir, two_ranks)
    assert start == run_dir.path / "checkpoint-3"
    assert [path.name for path in run_dir.path.glob("*/checkpoint-*")] == ["checkpoint-6"]
    [event] = [json.loads(line) for line in run_dir.events.read_text().splitlines()]
    assert (event["kind"], event["step"], event["kept_as"]) == ("quarantine", 6, "quarantine/checkpoint-6")
    assert "optimizer.pt: content differs" in event["message"]


def test_a_resume_abandons_what_comes_after(run_dir):
    two_ranks = World("torchrun", 0, 0, 2, 2)
    start = find_start(load("--resume", str(run_dir.path / "checkpoint-3")), run_dir, two_ranks)
    open_run(load("--resume", "auto"), run_dir, two_ranks, start)
    assert [json.loads(line)["step"] for line in run_dir.metrics.read_text().splitlines()] == [3]
    assert not run_dir.summary.exists()
    assert sorted(path.name for path in run_dir.path.glob("*checkpoint*")) == [
        "abandoned-checkpoint-6-1",
        "checkpoint-3",
    ]
    assert "debug.yaml:" in run_dir.config.read_text()
    assert json.loads(run_dir.env.read_text())["world_size"] == 2


def test_auto_starts_at_the_beginning_when_there_is_nothing(tmp_path):
    assert find_start(load("--resume", "auto"), RunDir(tmp_path / "none"), ONE_RANK) is None


def test_auto_never_starts_anew_over_checkpoints_that_are_all_damaged(run_dir):
    for checkpoint in run_dir.path.glob("checkpoint-*"):
        (checkpoint / "manifest.json").unlink()
    for _ in range(2):  # then all are in quarantine
        with pytest.raises(UserError, match="no checkpoint in it can be resumed from"):
            find_start(load("--resume", "auto"), run_dir, ONE_RANK)


def test_a_path_that_is_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no manifest.json"):
        find_start(load("--resume", str(tmp_path)), RunDir(tmp_path), ONE_RANK)


def test_zero_shards_are_not_resumed_by_another_number_of_ranks(run_dir, caplog):
    with pytest.raises(UserError, match="DeepSpeed wrote it with world size 2, this launch has 1"):
        find_start(load("--resume", "auto", "--deepspeed", "zero2_bf16"), run_dir, ONE_RANK)
    assert find_start(load("--resume", "auto"), run_dir, ONE_RANK) == run_dir.path / "checkpoint-6"
    assert "not bit for bit" in caplog.text
