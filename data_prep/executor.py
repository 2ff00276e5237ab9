"""Runs the parts of a build: in this process when there is little to do, else in a pool of fresh processes.

The stages are pure functions over parts, so where they run changes nothing in the result. Workers are spawned, not
forked: a fork of a process that holds threads (torch, gigatoken) can hang. Spawning imports the main module again,
which is why entrypoints import torch inside `main`.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from data_prep.errors import UserError

MAX_PROCESSES = 16
P = TypeVar("P")
R = TypeVar("R")


def find_num_processes(num_proc: int | str) -> int:
    """`data.num_proc`, where `auto` is the number of usable cores, at most 16."""
    if isinstance(num_proc, int):
        return num_proc
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, MAX_PROCESSES)


def run_parts(function: Callable[[P], R], parts: Sequence[P], processes: int) -> Iterator[R]:
    """Results in the order of `parts`. Raises UserError when a worker is killed, and what `function` raises."""
    if processes <= 1 or len(parts) <= 1:
        yield from map(function, parts)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(processes, len(parts)), mp_context=context)
    try:
        yield from pool.map(function, parts)
    except BrokenProcessPool:
        raise UserError(
            "a data preparation process was killed, probably for want of memory: lower data.num_proc and run again"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
