"""A run of a benchmark ends, and with it all that it started."""

import sys
import time

import psutil
import pytest

from data_prep.errors import UserError
from training.benchmark.launching import run_logged

CHILD = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])"


def test_a_failure_is_its_error_and_its_log(tmp_path):
    with pytest.raises(UserError, match=r"one failed with exit code 3, see .*one\.log: error: the reason"):
        script = "import sys; print('error: the reason'); print('gone'); sys.exit(3)"
        run_logged([sys.executable, "-c", script], tmp_path / "one.log", 60)


def test_a_time_limit_ends_what_the_run_started(tmp_path):
    with pytest.raises(UserError, match="ended after 2 s"):
        run_logged([sys.executable, "-c", f"{CHILD}; print(p.pid, flush=True); time.sleep(100)"], tmp_path / "a.log", 2)
    child = int((tmp_path / "a.log").read_text())
    deadline = time.monotonic() + 20
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
