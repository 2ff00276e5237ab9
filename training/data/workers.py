"""Data workers that die are replaced where they were: a batch is a function of its position, so its rows stay.

torch would raise in the middle of whatever the main thread does when a worker dies, from its handler of SIGCHLD. Here
it is seen when the next batch is asked for, and all workers start again from the position of the batches handed out.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from data_prep.errors import UserError

logger = logging.getLogger("redline.data")

Item = TypeVar("Item")
MAX_LOSSES = 3  # in a row, without a batch


def iterate_quietly(loader: DataLoader[Any]) -> Iterator[Any]:
    """Its batches; a worker that dies raises where a batch is asked for, and nowhere else."""
    if loader.num_workers == 0 or threading.current_thread() is not threading.main_thread():
        return iter(loader)
    handler = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    signal.signal(signal.SIGCHLD, handler)
    return batches


def next_over_losses(next_batch: Callable[[], Item], start_again: Callable[[], None]) -> Item:
    """The next batch; where a worker has died, after `start_again`. Raises UserError when they die again and again."""
    for _ in range(MAX_LOSSES):
        try:
            return next_batch()
        except (RuntimeError, ConnectionError, EOFError) as error:
            if not _is_loss(error):
                raise
            logger.warning("%s: the data workers start again where they were", " ".join(str(error).split()))
        start_again()
    raise UserError(
        f"data.num_workers: data workers died {MAX_LOSSES} times in a row, probably because memory ran out: lower it"
    )


def _is_loss(error: Exception) -> bool:
    """Whether a worker has died, with batches that it had prepared (tensors are fetched from it) or without."""
    if not isinstance(error, RuntimeError):
        return True
    words = str(error)
    return "DataLoader worker" in words and ("exited unexpectedly" in words or "is killed by signal" in words)
