"""A run of a benchmark ends, and with it all that it started."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from data_prep.errors import UserError
from training.benchmark.launching import run_logged

ROOT = Path(__file__).resolve().parents[2]
CHILD = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])"


def test_a_failure_is_its_error_and_its_log(tmp_path):
    with pytest.raises(UserError, match=r"one failed with exit code 3, see .*one\.log: error: the reason"):
        script = "import sys; print('error: the reason'); print('gone'); sys.exit(3)"
        run_logged([sys.executable, "-c", script], tmp_path / "one.log", 60)


def test_sigterm_ends_what_the_run_started_and_then_this(tmp_path):
    """As a scheduler ends a job: the signal goes to the benchmark alone."""
    script = (
        "import sys; from pathlib import Path; from training.benchmark.launching import run_logged\n"
        f"run_logged([sys.executable, '-c', {f'{CHILD}; print(p.pid, flush=True); time.sleep(100)'!r}], "
        f"Path({str(tmp_path / 'a.log')!r}), 90)"
    )
    benchmark = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not (log := tmp_path / "a.log").exists() or not log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    benchmark.terminate()
    assert b"KeyboardInterrupt" in benchmark.communicate(timeout=30)[1]
    assert_gone(int(log.read_text()))


def test_a_time_limit_ends_what_the_run_started(tmp_path):
    with pytest.raises(UserError, match="ended after 2 s"):
        run_logged([sys.executable, "-c", f"{CHILD}; print(p.pid, flush=True); time.sleep(100)"], tmp_path / "a.log", 2)
    assert_gone(int((tmp_path / "a.log").read_text()))


def assert_gone(process):
    deadline = time.monotonic() + 20
    while psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
