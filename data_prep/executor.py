"""Runs the parts of a build in this process, in a pool of new processes, or on a Ray cluster.

A stage is a pure function of a part, so the result does not depend on where it runs. `execute(function, parts)` yields
(index of the part, result) in the order in which parts finish, so a slow part does not delay saving the others. Only a
few parts are in progress at a time, so memory does not grow with their number. An error is raised as soon as it occurs,
after the results that are ready.

Workers are spawned instead of forked, because forking a process with threads (torch, gigatoken) can deadlock. Spawning
imports the main module again, so entrypoints import torch inside `main`. A worker ends when its parent is killed. The
terminal sends Ctrl-C to all processes; workers ignore it, and the parent stops them.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import connection
from typing import Any, Protocol, TypeVar

from data_prep.bounded import run_bounded
from data_prep.errors import UserError
from data_prep.options import DataSection

MAX_PROCESSES = 16
# Time to start a pool (imports take 1.0 to 1.3 s a worker on 2 shared cores). A pool is used if it saves more.
POOL_START_SECONDS = 1.3
P = TypeVar("P")
R = TypeVar("R")


class Executor(Protocol):
    """Runs a function on parts."""

    def __call__(self, function: Callable[[P], R], parts: Sequence[P]) -> Iterator[tuple[int, R]]:
        """Yield the index and result of each part, as parts finish."""
        ...


def choose_executor(data: DataSection, seconds: float) -> Executor:
    """Choose the executor that `data.executor` names; `seconds` is how long one process would need."""
    if data.executor == "ray":
        from data_prep.ray_executor import run_on_ray  # an optional requirement

        return partial(run_on_ray, address=data.ray_address)
    processes = find_num_processes(data.num_proc)
    saved = seconds * (1 - 1 / processes)
    return partial(run_parts, processes=processes if saved > POOL_START_SECONDS else 1)


def find_num_processes(num_proc: int | str) -> int:
    """Return `data.num_proc`, with `auto` as the number of usable cores, at most 16."""
    if isinstance(num_proc, int):
        return num_proc
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, MAX_PROCESSES)


def run_parts(function: Callable[[P], R], parts: Sequence[P], processes: int) -> Iterator[tuple[int, R]]:
    """Yield results as parts finish. Raises UserError when a worker is killed, and what `function` raises."""
    if processes <= 1 or len(parts) <= 1:
        yield from enumerate(map(function, parts))
        return
    workers = min(processes, len(parts))
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        yield from run_bounded(partial(_submit, pool, function), _find_done, Future.result, parts, workers)
    except (KeyboardInterrupt, SystemExit, GeneratorExit):  # nobody needs the parts that are in progress
        for worker in set(multiprocessing.active_children()) - before:
            worker.terminate()
        raise
    except BrokenProcessPool:
        raise UserError(
            "a data preparation process was killed, probably because memory ran out: lower data.num_proc and run again"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, function: Callable[[P], R], part: P) -> Future[R]:
    """Submit a part with SIGINT blocked: this starts workers, which inherit the blocked signals from the start."""
    with _hold_interrupts():
        return pool.submit(function, part)


@contextmanager
def _hold_interrupts() -> Iterator[None]:
    """Delay a Ctrl-C until after the block, so that it does not interrupt the start of a worker.

    Blocking SIGINT in this thread is not enough: another thread receives it, and Python raises in the main thread.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    received: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    is_ours = callable(handler) and threading.current_thread() is threading.main_thread()
    if is_ours:
        signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if received and callable(handler):
        handler(signal.SIGINT, None)


def _find_done(futures: list[Future[Any]], block: bool) -> list[Future[Any]]:
    return list(wait(futures, None if block else 0, FIRST_COMPLETED).done)


def _end_with_parent() -> None:
    """End this worker when its parent is killed; otherwise it would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_exit, args=(parent.sentinel,), daemon=True).start()


def _wait_and_exit(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
