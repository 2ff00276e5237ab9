"""Calls in a process of their own, and the memory they take."""

import multiprocessing
import os
import time

import pytest

from training.benchmark.isolation import run_fresh

MB = 10**6


def get_pid(factor: int) -> int:
    return factor * os.getpid()


def fail() -> None:
    raise KeyError("no such thing")


def die() -> None:
    os._exit(3)


def hold(megabytes: int) -> None:
    block = b"x" * (megabytes * MB)
    time.sleep(0.2)
    del block


def hold_in_a_worker(megabytes: int) -> None:
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(megabytes,))
    process.start()
    process.join()


def test_a_call_runs_elsewhere_and_hands_its_value_back():
    assert run_fresh(get_pid, -1).value not in (-os.getpid(), 0)


def test_a_failure_comes_back_with_its_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)fail failed in its own process.*no such thing"):
        run_fresh(fail)
    with pytest.raises(RuntimeError, match="die: its process died with exit code 3"):
        run_fresh(die)


def test_peaks_tell_the_process_from_its_workers():
    outcome = run_fresh(hold_in_a_worker, 150, watch=True)
    largest = max(outcome.workers, key=lambda peak: peak.resident)
    assert 150 <= largest.resident / MB < 250
    assert 150 <= largest.private / MB < 250
    assert outcome.main.resident / MB < 150
