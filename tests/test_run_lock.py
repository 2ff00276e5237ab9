"""The lock of a run directory: one holder, gone with its process, children or not, and told by name."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.errors import UserError
from training import run_lock
from training.run_lock import RunLock

ROOT = Path(__file__).resolve().parents[1]
# Takes the lock, forks a child as a data worker is forked, and waits to be killed.
HOLDER = """
import os, sys, time
from pathlib import Path
from training.run_lock import RunLock
RunLock(Path(sys.argv[1])).acquire()
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(60)
"""


@pytest.fixture
def run_path(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def holder(run_path):
    """(process, pid of its child) of another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    yield process, child
    process.kill()
    process.wait()
    process.stdout.close()
    os.kill(child, signal.SIGKILL)


def write_holder(run_path, host, pid=1, age_seconds=0.0):
    path = RunLock(run_path).path
    path.write_text(json.dumps({"host": host, "pid": pid, "started": 1.0}))
    written = time.time() - age_seconds
    os.utime(path, (written, written))
    return path


def test_the_second_is_refused_by_name_until_the_first_is_killed_though_its_child_lives(run_path, holder, caplog):
    process, child = holder
    with pytest.raises(UserError) as error:
        RunLock(run_path).acquire()
    assert f"{run_path} is in use by process {process.pid} on {socket.gethostname()}" in str(error.value)
    assert not run_path.exists()
    process.kill()
    process.wait()
    os.kill(child, 0)  # still there
    lock = RunLock(run_path)
    caplog.set_level("INFO")
    lock.acquire()
    assert f"was held by process {process.pid}" in caplog.text and "taken over" in caplog.text
    lock.release()
    assert not lock.path.exists()


def test_the_lock_is_beside_the_directory_and_names_its_holder(run_path):
    lock = RunLock(run_path)
    lock.acquire()
    found = json.loads((run_path.parent / ".run.lock").read_text())
    assert (found["host"], found["pid"]) == (socket.gethostname(), os.getpid())
    assert abs(found["started"] - time.time()) < 24 * 3600
    lock.release()
    lock.release()
    assert list(run_path.parent.iterdir()) == []


def test_a_link_to_the_directory_has_the_same_lock(run_path, tmp_path):
    run_path.mkdir()
    (tmp_path / "link").symlink_to(run_path)
    assert RunLock(tmp_path / "link").path == RunLock(run_path).path


def test_a_heartbeat_of_another_machine_refuses_and_its_silence_does_not(run_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(run_lock, "HEARTBEAT_SECONDS", 0.2)
    path = write_holder(run_path, "elsewhere", 77)
    beats = []

    def beat(_) -> None:
        now = time.time() + 5
        beats.append(os.utime(path, (now, now)))

    monkeypatch.setattr(time, "sleep", beat)
    with pytest.raises(UserError, match="is in use by process 77 on elsewhere"):
        RunLock(run_path).acquire()
    assert beats
    monkeypatch.undo()
    write_holder(run_path, "elsewhere", 77, age_seconds=600)
    lock = RunLock(run_path)
    lock.acquire()
    assert "was held by process 77 on elsewhere, which is gone: taken over" in caplog.text
    lock.release()


def test_a_file_system_without_locks_goes_by_the_process(run_path, monkeypatch, caplog):
    def has_none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", has_none)
    started = run_lock.Holder.this().started
    path = RunLock(run_path).path
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        theirs = run_lock.psutil.Process(other.pid).create_time()
        path.write_text(json.dumps({"host": socket.gethostname(), "pid": other.pid, "started": theirs}))
        with pytest.raises(UserError, match=f"is in use by process {other.pid}"):
            RunLock(run_path).acquire()
        # another process got the number since
        path.write_text(json.dumps({"host": socket.gethostname(), "pid": other.pid, "started": started - 5000}))
        lock = RunLock(run_path)
        lock.acquire()
        lock.release()
        other.kill()
    assert caplog.text.count("has no locks (No locks available): heartbeats have to do") == 2


def test_the_time_stamp_is_renewed(run_path, monkeypatch):
    monkeypatch.setattr(run_lock, "HEARTBEAT_SECONDS", 0.05)
    lock = RunLock(run_path)
    lock.acquire()
    os.utime(lock.path, (1, 1))
    deadline = time.monotonic() + 10
    while lock.path.stat().st_mtime == 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert lock.path.stat().st_mtime > 1
    lock.release()


def test_a_place_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        RunLock(tmp_path / "file" / "run").acquire()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
