"""Where a session starts, that it never writes into an older run, and who does what all ranks need."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from data_prep.errors import UserError
from training.checkpoints.manifest import write_manifest
from training.config import load_config
from training.launch import World
from training.on_ranks import on_each_node
from training.opening import move_aside, open_run
from training.run_dir import RunDir
from training.session import find_start

ONE_RANK = World("python", 0, 0, 1, 1)


@pytest.fixture
def run_dir(tmp_path):
    run_dir = RunDir(tmp_path / "run")
    for step in (3, 6):
        checkpoint = run_dir.path / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "optimizer.pt").write_bytes(bytes([step]))
        write_manifest(checkpoint, step=step, world_size=2)
        run_dir.append_metrics({"step": step})
    run_dir.write_json(run_dir.summary, {"steps": 6})
    return run_dir


def load(*flags):
    return load_config(["--config", "debug", *flags])


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


def test_auto_goes_on_from_the_latest_whole_one_and_abandons_what_comes_after(run_dir):
    (run_dir.path / "checkpoint-6" / "optimizer.pt").write_bytes(b"!")
    two_ranks = World("torchrun", 0, 0, 2, 2)
    start = find_start(load("--resume", "auto"), run_dir, two_ranks)
    assert start == run_dir.path / "checkpoint-3"
    open_run(load("--resume", "auto"), run_dir, two_ranks, start)
    assert [json.loads(line)["step"] for line in run_dir.metrics.read_text().splitlines()] == [3]
    assert not run_dir.summary.exists()
    assert sorted(path.name for path in run_dir.path.glob("*checkpoint*")) == [
        "abandoned-checkpoint-6-1",
        "checkpoint-3",
    ]
    assert "debug.yaml:" in run_dir.config.read_text()
    assert json.loads(run_dir.env.read_text())["world_size"] == 2


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


def test_auto_starts_at_the_beginning_when_there_is_nothing(tmp_path):
    assert find_start(load("--resume", "auto"), RunDir(tmp_path / "none"), ONE_RANK) is None


def test_auto_never_starts_anew_over_checkpoints_that_are_all_damaged(run_dir):
    for checkpoint in run_dir.path.glob("checkpoint-*"):
        (checkpoint / "manifest.json").unlink()
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


@pytest.fixture
def on_two_nodes(monkeypatch):
    """`on_two_nodes(function)`: what `on_each_node` gives or raises on 2 nodes of 2 ranks each; a thread is a rank."""
    gathered, everybody = {}, threading.Barrier(4)

    def gather(outcomes, outcome, group):
        gathered[threading.current_thread().name] = outcome
        everybody.wait(10)
        outcomes[:] = [gathered[f"rank_{rank}"] for rank in range(4)]

    monkeypatch.setattr("torch.distributed.new_group", lambda **kwargs: None)
    monkeypatch.setattr("torch.distributed.all_gather_object", gather)

    def run(rank, function):
        threading.current_thread().name = f"rank_{rank}"
        try:
            return on_each_node(World("torchrun", rank, rank % 2, 4, 2), function)
        except Exception as error:
            return error

    def start(function):
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(run, range(4), [function] * 4))

    return start


def test_one_rank_of_each_node_prepares_and_the_others_get_its_result(on_two_nodes):
    called = []

    def prepare():
        called.append(threading.current_thread().name)
        return f"made by {called[-1]}"

    assert on_two_nodes(prepare) == ["made by rank_0", "made by rank_0", "made by rank_2", "made by rank_2"]
    assert sorted(called) == ["rank_0", "rank_2"]


def test_all_ranks_hear_of_an_error_on_any_node(on_two_nodes):
    def prepare():
        if threading.current_thread().name == "rank_2":
            raise UserError("line 5 is bad")
        return "made"

    assert [str(found) for found in on_two_nodes(prepare)] == ["line 5 is bad"] * 4
