"""Attribution is checked with a clock that is set by hand, and once against the real one."""

import time

import pytest

from training.metrics.names import BACKWARD, EVAL, FORWARD, OPTIMIZER, OTHER
from training.metrics.phase_timer import CudaClock, PhaseTimer, build_phase_timer


class HandClock:
    """Seconds as the test says; `lag` marks are not readable yet, as on a device with queued work."""

    def __init__(self) -> None:
        self.now = 0.0
        self.readable_until = float("inf")
        self.released: list[float] = []

    def mark(self) -> float:
        return self.now

    def ready(self, mark: float) -> bool:
        return mark <= self.readable_until

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def release(self, mark: float) -> None:
        self.released.append(mark)

    def synchronize(self) -> None:
        self.readable_until = float("inf")


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


def spend(clock: HandClock, seconds: float) -> None:
    clock.now += seconds


def test_nested_phases_are_exclusive_and_sum_to_the_wall_time(clock):
    timer = PhaseTimer(clock)
    timer.start()
    spend(clock, 1)
    with timer.span(FORWARD):
        spend(clock, 2)
    with timer.span(BACKWARD):
        spend(clock, 4)
        with timer.span(OPTIMIZER):
            spend(clock, 8)
        spend(clock, 16)
    spend(clock, 32)
    timer.end_step("work")
    (step,) = timer.finished_steps()
    assert step.seconds == {OTHER: 33, FORWARD: 2, BACKWARD: 20, OPTIMIZER: 8}
    assert step.total_seconds == clock.now == 63
    assert step.work == "work"


def test_a_span_that_is_open_at_a_step_s_end_goes_on_in_the_next(clock):
    timer = PhaseTimer(clock)
    timer.start()
    with timer.span(EVAL):
        spend(clock, 3)
        timer.end_step(1)
        spend(clock, 5)
    timer.end_step(2)
    first, second = timer.finished_steps()
    assert first.seconds == {OTHER: 0, EVAL: 3}
    assert second.seconds == {EVAL: 5, OTHER: 0}


def test_steps_are_handed_out_once_in_order_and_only_when_they_can_be_read(clock):
    timer = PhaseTimer(clock)
    timer.start()
    for number in range(3):
        spend(clock, 10)
        timer.end_step(number)
    clock.readable_until = 20
    assert [step.work for step in timer.finished_steps()] == [0, 1]
    assert timer.finished_steps() == []
    assert [step.work for step in timer.finished_steps(wait=True)] == [2]


def test_a_mark_is_released_once_and_never_while_the_next_step_needs_it(clock):
    timer = PhaseTimer(clock)
    timer.start()
    spend(clock, 1)
    timer.end_step(None)
    timer.finished_steps()
    assert clock.released == [0]  # the mark at 1 begins the next step
    spend(clock, 1)
    timer.end_step(None)
    timer.finished_steps()
    assert clock.released == [0, 1]


def test_a_phase_ends_when_its_body_raises(clock):
    timer = PhaseTimer(clock)
    timer.start()
    with pytest.raises(KeyError), timer.span(FORWARD):
        spend(clock, 2)
        raise KeyError
    spend(clock, 1)
    timer.end_step(None)
    assert timer.finished_steps()[0].seconds == {OTHER: 1, FORWARD: 2}


def test_spans_before_the_start_cost_nothing_and_a_step_cannot_end_before_it():
    timer = PhaseTimer()
    with timer.span(FORWARD):
        pass
    with pytest.raises(RuntimeError, match="before start"):
        timer.end_step(None)


def test_the_host_clock_measures_real_time():
    timer = build_phase_timer("cpu")
    timer.start()
    begin = time.perf_counter()
    with timer.span(FORWARD):
        time.sleep(0.05)
    timer.end_step(None)
    wall = time.perf_counter() - begin
    (step,) = timer.finished_steps()
    assert 0.05 <= step.seconds[FORWARD] <= wall


class FakeEvent:
    """torch.cuda.Event as far as the timer uses it: done when the fake device has reached it."""

    device_time = 0.0
    done_until = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.time = FakeEvent.device_time

    def query(self) -> bool:
        return self.time <= FakeEvent.done_until

    def elapsed_time(self, end: "FakeEvent") -> float:
        return (end.time - self.time) * 1e3


def test_cuda_events_are_read_without_synchronizing_and_reused(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: pytest.fail("synchronized on the step path"))
    clock = CudaClock()
    timer = PhaseTimer(clock)
    timer.start()
    for number in range(3):
        with timer.span(FORWARD):
            FakeEvent.device_time += 1
        timer.end_step(number)
    assert timer.finished_steps() == []
    FakeEvent.done_until = 2
    assert [step.seconds for step in timer.finished_steps()] == [{OTHER: 0, FORWARD: 1}] * 2
    pooled = len(clock._pool)
    assert pooled > 0
    with timer.span(FORWARD):
        pass
    assert len(clock._pool) == pooled - 2
