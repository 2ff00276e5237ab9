import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from data_prep.errors import UserError
from data_prep.executor import _hold_interrupts, choose_executor, find_num_processes, run_parts
from data_prep.options import DataSection


def square(number: int) -> int:
    if number == 13:
        raise UserError("thirteen")
    if number == 666:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def test_results_come_from_one_process_or_two():
    for processes in (1, 2):
        assert dict(run_parts(square, range(9), processes)) == {i: i * i for i in range(9)}


def test_errors_and_killed_workers_reach_the_user():
    with pytest.raises(UserError, match="thirteen"):
        list(run_parts(square, [1, 13, 2], 2))
    with pytest.raises(UserError, match="killed"):
        list(run_parts(square, [1, 666, 2], 2))


PARENT = """
import os, sys, time
from pathlib import Path
from data_prep.executor import run_parts
from tests.data_prep.test_executor import wait_for_ever
if __name__ == "__main__":
    list(run_parts(wait_for_ever, [Path(sys.argv[1])] * 2, 2))
"""


def wait_for_ever(directory: Path) -> None:
    (directory / str(os.getpid())).write_text("")
    time.sleep(1000)


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    pids = tmp_path / "pids"
    pids.mkdir()
    parent = subprocess.Popen([sys.executable, str(script), str(pids)], env={**os.environ, "PYTHONPATH": os.getcwd()})
    while len(list(pids.iterdir())) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    workers = [psutil.Process(int(path.name)) for path in pids.iterdir()]
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs(workers, timeout=30)[1]


STOPPED = """
import signal
import sys
from pathlib import Path
from data_prep import prepare
from data_prep.executor import run_parts
from tests.data_prep.test_executor import wait_for_ever
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # processes in the background of a shell ignore SIGINT
    prepare.prepare = lambda *_: list(run_parts(wait_for_ever, [Path(sys.argv[1])] * 2, 2))
    sys.exit(prepare.main([]))
"""


@pytest.mark.parametrize("delay", [None, 0.0, 0.1, 0.3])
def test_ctrl_c_is_one_line(tmp_path: Path, delay: float | None):
    """Ctrl-C goes to all processes, as from a terminal, while workers work, start or import."""
    script = tmp_path / "main.py"
    script.write_text(STOPPED)
    pids = tmp_path / "pids"
    pids.mkdir()
    command = [sys.executable, str(script), str(pids)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    process = psutil.Process(parent.pid)
    while len(list(pids.iterdir())) < 2 if delay is None else len(process.children()) < 3:  # incl. resource tracker
        assert parent.poll() is None
        time.sleep(0.01)
    time.sleep(delay or 0.0)
    workers = process.children()
    os.killpg(parent.pid, signal.SIGINT)
    try:
        said = parent.communicate(timeout=60)[1]
    finally:
        parent.kill()
    assert (parent.returncode, said) == (130, "stopped; finished parts are kept: run again to continue\n")
    assert not psutil.wait_procs(workers, timeout=30)[1]


def test_a_ctrl_c_that_another_thread_takes_waits_for_the_worker_to_be_started():
    end = threading.Event()
    other = threading.Thread(target=end.wait)  # SIGINT is not blocked in this thread, so the kernel sends it there
    other.start()
    reached = False
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), _hold_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            reached = True
    finally:
        signal.signal(signal.SIGINT, before)
        end.set()
        other.join()
    assert reached


def test_number_of_processes():
    assert find_num_processes(3) == 3
    assert 1 <= find_num_processes("auto") <= 16


def test_a_pool_is_started_for_much_work_only():
    data = DataSection.model_validate({"num_proc": 5})
    for seconds, processes in ((0.01, 1), (1.6, 1), (1.7, 5)):  # of 1.6 s five would save 1.28
        chosen = choose_executor(data, seconds)
        assert isinstance(chosen, partial)
        assert chosen.keywords == {"processes": processes}
