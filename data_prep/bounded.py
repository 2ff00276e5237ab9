"""Tasks of any executor, of which only a few are under way at a time."""

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
    """Results of tasks, of which two a worker are submitted at a time, as they finish. After a first failure nothing is
    submitted any more, and it is raised behind the results that are there."""
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
