"""A killed data worker is replaced, and the rows are those of the straight stream."""

import os
import signal
import time
from itertools import islice

import psutil
import pytest
import torch

from data_prep.errors import UserError
from tests.data.test_loader import DOCUMENTS, load
from training.data.workers import MAX_LOSSES, next_over_losses


def kill_workers(number: int, others: set[int]) -> None:
    """others: processes that the tests before have started."""
    for child in [one for one in psutil.Process().children() if one.pid not in others][:number]:
        os.kill(child.pid, signal.SIGKILL)
        while child.status() != psutil.STATUS_ZOMBIE:  # only its parent's code may wait for it
            time.sleep(0.01)


@pytest.mark.parametrize("number", [1, 2])
def test_killed_workers_are_replaced_at_the_same_position(make_store, caplog, number):
    store = make_store(DOCUMENTS)
    others = {child.pid for child in psutil.Process().children()}
    straight, batches = load(store), load(store, num_workers=2)
    straight.start(6)
    batches.start(6)
    for count, (expected, batch) in enumerate(islice(zip(straight, batches, strict=True), 30)):
        assert torch.equal(expected["input_ids"], batch["input_ids"]) and straight.position == batches.position
        if count in (3, 4, 15):
            kill_workers(number, others)
    assert "the data workers start again where they were" in caplog.text


def test_workers_that_die_again_and_again_are_one_line():
    started = []

    def die():
        raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")

    with pytest.raises(UserError, match=r"data\.num_workers: data workers died 3 times"):
        next_over_losses(die, lambda: started.append(1))
    assert len(started) == MAX_LOSSES


def test_another_error_is_not_swallowed():
    def fail():
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        next_over_losses(fail, lambda: None)
