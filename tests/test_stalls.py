"""A main thread without progress is noticed by its section's budget, and its stacks are written."""

import os
import threading
import time

import pytest

from training import stalls
from training.stalls import Stall, StallWatch

QUICK = 0.2  # seconds of the least budget


@pytest.fixture
def watch(tmp_path):
    """A watch with a fast step behind it, and the stalls that it tells of."""
    found: list[Stall] = []
    told = threading.Event()

    def note(stall: Stall) -> None:
        found.append(stall)
        told.set()

    watch = StallWatch(1, QUICK, note)
    watch.write_to(tmp_path / "stalls")
    watch.end_step(1, took_only_a_step=True)
    watch.end_step(2, took_only_a_step=True)
    yield watch, found, told
    watch.stop()


def test_a_rank_without_progress_writes_its_stacks_once(watch, tmp_path):
    watch, found, told = watch
    watch.start()
    assert told.wait(10)
    time.sleep(2 * QUICK)
    [stall] = found
    assert str(stall).startswith("rank 1: ") and "in a step after step 2 without progress" in str(stall)
    stacks = (tmp_path / "stalls" / "rank-1.txt").read_text()
    assert str(stall) in stacks and "test_a_rank_without_progress_writes_its_stacks_once" in stacks
    assert (tmp_path / "stalls" / stalls.ASK).exists()


def test_progress_is_no_stall(watch):
    watch, found, _ = watch
    watch.start()
    for _ in range(8):
        time.sleep(QUICK / 2)
        watch.enter("an evaluation")
    assert not found


def test_another_rank_can_ask(watch, tmp_path):
    watch, found, told = watch
    watch.enter("a save")  # which has six times as long
    watch.start()
    (tmp_path / "stalls").mkdir()
    (tmp_path / "stalls" / stalls.ASK).touch()
    os.utime(tmp_path / "stalls" / stalls.ASK, (time.time() + 60, time.time() + 60))
    assert told.wait(10) and found[0].is_asked and "another rank makes no progress" in str(found[0])


def test_budgets_follow_the_section_and_the_longest_step():
    watch = StallWatch(0, 10.0, print)
    assert watch.budget == 60  # set-up
    watch.end_step(1, took_only_a_step=True)
    watch._last_step -= 2.0
    watch.end_step(2, took_only_a_step=True)
    assert watch.budget == pytest.approx(40, abs=0.5)  # 20 steps of 2 s
    watch.enter("a save")
    assert watch.budget == pytest.approx(240, abs=3)
    watch._last_step -= 100.0
    watch.end_step(3, took_only_a_step=False)  # with an evaluation
    assert watch.budget == pytest.approx(40, abs=0.5)
