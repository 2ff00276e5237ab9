"""The keys arrive under their own names, in every place a record goes."""

import json
import struct
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from training.callbacks.sinks import Console, build_sinks
from training.metrics import names
from training.run_dir import RunDir

RECORD = {
    "step": 7, "epoch": 0.5, "time_s": 3.0, "tokens": 700,
    names.TRAIN_LOSS: 2.5, names.PERF_MFU_PCT: 41.5, names.PERF_STEP_MS: 500.0, names.EVAL_LOSS: 2.25,
}  # fmt: skip


@pytest.fixture
def run_dir(tmp_path):
    return RunDir(tmp_path / "run")


def read_leveldb_log(content: bytes) -> Iterator[bytes]:
    """The records of a `.wandb` file: a 7-byte head, then LevelDB's log format in blocks of 32 KiB."""
    position, parts = 7, []
    while position + 7 <= len(content):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        parts.append(content[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # whole, or last part
            yield b"".join(parts)
            parts = []


def read_wandb_history(run_dir: RunDir) -> list[dict]:
    from wandb.proto import wandb_internal_pb2

    history = []
    for path in sorted(run_dir.path.rglob("run-*.wandb")):
        for data in read_leveldb_log(path.read_bytes()):
            record = cast(Any, wandb_internal_pb2).Record()  # a class made at import
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                history.append({(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items})
    return sorted(history, key=lambda entry: entry["_step"])


def test_wandb_offline_holds_the_keys_as_they_are_and_a_resumed_run_keeps_its_id(run_dir, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (7, 8):
        time.sleep(1.1)  # W&B names a session's directory by the second; one that is there is not written to
        for sink in (sinks := build_sinks(["wandb"], run_dir, max_steps=10, config={"model": {"kind": "minigpt"}})):
            sink.write({**RECORD, "step": step})
        for sink in sinks:
            sink.close()
        run_id = (run_dir.path / "wandb_id").read_text().strip()
        assert any(run_id in path.name for path in run_dir.path.rglob("run-*.wandb"))
    deadline = time.monotonic() + 30  # W&B's own process writes its file in its own time
    while len(history := read_wandb_history(run_dir)) < 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert [entry["_step"] for entry in history] == [7, 8]
    assert history[0]["perf/mfu_pct"] == 41.5
    assert history[0]["train/loss"] == 2.5 and history[0]["eval/loss"] == 2.25
    assert len({path.name.split("-")[-1] for path in run_dir.path.rglob("run-*.wandb")}) == 1  # one id for both


def test_tensorboard_holds_the_keys_as_they_are(run_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sinks = build_sinks(["tensorboard"], run_dir, max_steps=10, config={})
    for sink in sinks:
        sink.write(RECORD)
        sink.close()
    events = EventAccumulator(str(run_dir.path / "tensorboard"))
    events.Reload()
    keys = {names.TRAIN_LOSS, names.PERF_MFU_PCT, names.PERF_STEP_MS, names.EVAL_LOSS}
    assert set(events.Tags()["scalars"]) == keys
    (scalar,) = events.Scalars(names.PERF_MFU_PCT)
    assert (scalar.step, scalar.value) == (7, 41.5)


def test_metrics_file_is_always_written(run_dir):
    for sink in build_sinks([], run_dir, max_steps=10, config={}):
        sink.write(RECORD)
    assert json.loads(run_dir.metrics.read_text()) == RECORD


def test_the_console_says_what_is_left(caplog):
    import logging

    console = Console(max_steps=127)
    with caplog.at_level(logging.INFO, "redline.train"):
        console.write(RECORD)
        console.write({**RECORD, "step": 27, "time_s": 13.0})
    first, second = caplog.messages
    assert "step   7/127" in first and "loss 2.5000" in first and "MFU 41.5 %" in first and "left" not in first
    assert "0:50 left" in second  # 20 steps took 10 s, 100 are left


@pytest.mark.parametrize(("project", "told"), [("mine", "mine"), (None, "of the shell")])
def test_the_project_of_a_recipe_reaches_wandb(run_dir, monkeypatch, project, told):
    given = {}
    monkeypatch.setenv("WANDB_PROJECT", "of the shell")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("wandb.init", lambda **settings: given.update(settings))
    build_sinks(["wandb"], run_dir, max_steps=1, config={"training": {"project": project}})
    assert given["project"] == told
