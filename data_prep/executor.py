"""Where the parts of a build run: this process, a pool of fresh ones, or a Ray cluster.

The stages are pure functions over parts, so where they run changes nothing in the result. An executor is called as
`execute(function, parts)` and gives (index of the part, result) as parts finish, so a slow one keeps no other from
being saved; only some are under way at a time, so memory does not grow with their number. An error comes through as
soon as it happens, after the results that are there.

Workers are spawned, not forked: a fork of a process that holds threads (torch, gigatoken) can hang. Spawning imports
the main module again, which is why entrypoints import torch inside `main`. A worker ends when its parent is killed. A
Ctrl-C, which goes to all processes of a terminal, is for the parent alone: it stops the workers, which say nothing.
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
# What a pool takes to start (1.0 to 1.3 s of imports a worker on 2 shared cores): it has to save more than that.
POOL_START_SECONDS = 1.3
P = TypeVar("P")
R = TypeVar("R")


class Executor(Protocol):
    """Runs a function over parts, wherever its workers are."""

    def __call__(self, function: Callable[[P], R], parts: Sequence[P]) -> Iterator[tuple[int, R]]:
        """Index and result of each part, as they finish."""
        ...


def choose_executor(data: DataSection, seconds: float) -> Executor:
    """`data.executor` for work that one process does in about `seconds`. Raises UserError when it cannot be had."""
    if data.executor == "ray":
        from data_prep.ray_executor import run_on_ray  # an optional requirement

        return partial(run_on_ray, address=data.ray_address)
    processes = find_num_processes(data.num_proc)
    saved = seconds * (1 - 1 / processes)
    return partial(run_parts, processes=processes if saved > POOL_START_SECONDS else 1)


def find_num_processes(num_proc: int | str) -> int:
    """`data.num_proc`, where `auto` is the number of usable cores, at most 16."""
    if isinstance(num_proc, int):
        return num_proc
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, MAX_PROCESSES)


def run_parts(function: Callable[[P], R], parts: Sequence[P], processes: int) -> Iterator[tuple[int, R]]:
    """Results as parts finish. Raises UserError when a worker is killed, and what `function` raises."""
    if processes <= 1 or len(parts) <= 1:
        yield from enumerate(map(function, parts))
        return
    workers = min(processes, len(parts))
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        yield from run_bounded(partial(_submit, pool, function), _find_done, Future.result, parts, workers)
    except (KeyboardInterrupt, GeneratorExit):  # nobody waits for what is under way
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
    """Submitting is what starts workers, and they inherit which signals are blocked: from their first moment on."""
    with _hold_interrupts():
        return pool.submit(function, part)


@contextmanager
def _hold_interrupts() -> Iterator[None]:
    """A Ctrl-C counts behind the block: within it a worker may have been started and not yet been told what to do.

    Blocking SIGINT in this thread is not enough, since any other takes it, and Python raises in the main one.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    came: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    is_ours = callable(handler) and threading.current_thread() is threading.main_thread()
    if is_ours:
        signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if came and callable(handler):
        handler(signal.SIGINT, None)


def _find_done(futures: list[Future[Any]], block: bool) -> list[Future[Any]]:
    return list(wait(futures, None if block else 0, FIRST_COMPLETED).done)


def _end_with_parent() -> None:
    """In a worker: without this, those of a parent that was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_exit, args=(parent.sentinel,), daemon=True).start()


def _wait_and_exit(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
