"""Runs tasks on any executor, with only a few of them in progress at a time."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

SUBMITTED_PER_WORKER = 2
P = TypeVar("P")
R = TypeVar("R")


def run_bounded(
    submit: Callable[[P], Any],
    find_done: Callable[[list[Any], bool], list[Any]],
    get: Callable[[Any], R],
    parts: Sequence[P],
    workers: int,
) -> Iterator[tuple[int, R]]:
    """Run a task for each part; yield the index and result of each, as tasks finish.

    At most SUBMITTED_PER_WORKER tasks per worker are in progress. After the first failure, no task is submitted; the
    failure is raised after the results that are ready.
    submit: starts the task of a part and returns it.
    find_done: returns the finished ones of some tasks; waits for one if the flag is true.
    get: returns the result of a finished task, or raises its error.
    """
    running: dict[Any, int] = {}
    submitted = 0
    while submitted < len(parts) or running:
        failure: Exception | None = None
        try:
            while submitted < len(parts) and len(running) < SUBMITTED_PER_WORKER * workers:
                running[submit(parts[submitted])] = submitted
                submitted += 1
        except Exception as error:
            failure = error
        for task in find_done(list(running), failure is None):
            index = running.pop(task)
            try:
                result = get(task)
            except Exception as error:
                failure = failure or error
                continue
            yield index, result
        if failure is not None:
            raise failure
