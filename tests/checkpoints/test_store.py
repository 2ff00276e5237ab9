"""A save is there whole, or not at all; a full disk stops the run or not, as it was told."""

import errno
import json
import threading

import pytest
import torch

from data_prep.errors import UserError
from training.checkpoints import disk
from training.checkpoints.manifest import read_manifest, verify_checkpoint
from training.checkpoints.store import CheckpointStore, SavingRank, StoreOptions, sweep
from training.run_dir import RunDir


def open_store(path, **options):
    return CheckpointStore(RunDir(path), StoreOptions(**options), SavingRank())


def save(store, step, *, fails_with=None, wait=None):
    staging = store.begin(step, 1000)
    if staging is None:
        return False
    if wait:
        staging.write(wait)
    with staging.collecting():
        torch.save(torch.arange(step), staging.path / "optimizer.pt")
    if fails_with:
        staging.fail(fails_with)
    return store.commit(staging, {"step": step, "world_size": 1}, None)


def read_kinds(path):
    return [json.loads(line)["kind"] for line in (path / "events.jsonl").read_text().splitlines()]


def list_run(path):
    return sorted(entry.name for entry in path.iterdir())


def test_saves_rotate(tmp_path):
    store = open_store(tmp_path, limit=2, keep_every=2)
    assert all(save(store, step) for step in (1, 2, 3, 4, 5))
    assert list_run(tmp_path) == [*(f"checkpoint-{step}" for step in (2, 4, 5)), "events.jsonl"]
    assert verify_checkpoint(tmp_path / "checkpoint-5").step == 5


def test_a_step_is_saved_once(tmp_path):
    store = open_store(tmp_path)
    assert save(store, 1) and not save(store, 1)
    (tmp_path / "checkpoint-1" / "manifest.json").unlink()
    assert save(store, 1)
    verify_checkpoint(tmp_path / "checkpoint-1")
    assert list_run(tmp_path) == ["checkpoint-1", "events.jsonl", "quarantine"]


FULL_DISK = OSError(errno.ENOSPC, "No space left on device")


def test_training_goes_on_without_a_checkpoint_that_found_the_disk_full(tmp_path, caplog):
    store = open_store(tmp_path)
    assert save(store, 1) and not save(store, 2, fails_with=FULL_DISK) and save(store, 3)
    assert list_run(tmp_path) == ["checkpoint-1", "checkpoint-3", "events.jsonl"]
    assert read_kinds(tmp_path) == ["save", "disk_full", "save"]
    assert "checkpoint-2 was not saved: OSError: [Errno 28] No space left on device" in caplog.text


def test_or_it_stops_with_one_line(tmp_path):
    store = open_store(tmp_path, on_disk_full="stop")
    save(store, 1)
    with pytest.raises(UserError, match="checkpoint-2 was not saved: .*No space left.*free space there, then --resume"):
        save(store, 2, fails_with=FULL_DISK)
    assert list_run(tmp_path) == ["checkpoint-1", "events.jsonl"]


def test_another_error_stops_the_run_whatever_a_full_disk_does(tmp_path):
    store = open_store(tmp_path)
    with pytest.raises(UserError, match="checkpoint-1 was not saved: .*read-only"):
        save(store, 1, fails_with=OSError(errno.EROFS, "read-only"))
    with pytest.raises(TypeError, match="of code"):
        save(store, 2, fails_with=TypeError("of code"))
    assert list_run(tmp_path) == ["events.jsonl"]


def test_too_little_room_is_seen_from_the_size_of_the_last_one(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    save(store, 1)
    size = read_manifest(tmp_path / "checkpoint-1").total_bytes
    free = [size + disk.RESERVE_BYTES - 1]
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free[0]}))
    assert not save(store, 2)
    free[0] += 1
    assert save(store, 3)
    assert list_run(tmp_path) == ["checkpoint-1", "checkpoint-3", "events.jsonl"]


def test_a_save_in_the_background_gets_its_name_when_it_is_written(tmp_path):
    store, may_write = open_store(tmp_path, in_background=True), threading.Event()
    assert save(store, 1, wait=may_write.wait)
    store.poll()
    assert store.is_saving and list_run(tmp_path) == [".staging"]
    may_write.set()
    assert save(store, 2)  # waits for the one before
    assert (tmp_path / "checkpoint-1").is_dir()
    store.drain()
    assert not store.is_saving and verify_checkpoint(tmp_path / "checkpoint-2").step == 2
    assert torch.load(tmp_path / "checkpoint-2" / "optimizer.pt").tolist() == [0, 1]


def test_an_error_in_the_background_is_raised_at_the_end_of_a_step(tmp_path):
    store = open_store(tmp_path, in_background=True, on_disk_full="stop")
    save(store, 1, fails_with=FULL_DISK)
    with pytest.raises(UserError, match="checkpoint-1 was not saved"):
        for _ in range(1000):
            store.poll()
            threading.Event().wait(0.01)
    assert list_run(tmp_path) == ["events.jsonl"]


def test_a_start_sweeps_what_a_killed_process_left(tmp_path, caplog):
    caplog.set_level("INFO")
    store = open_store(tmp_path)
    save(store, 1)
    store.begin(2, 0)
    sweep(RunDir(tmp_path))
    assert "1 unfinished save(s) of a killed process removed" in caplog.text
    assert list_run(tmp_path) == ["checkpoint-1", "events.jsonl"] and read_kinds(tmp_path) == ["save", "sweep"]
    sweep(RunDir(tmp_path))
    assert len(caplog.records) == 1
