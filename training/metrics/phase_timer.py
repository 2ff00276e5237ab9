"""Where the wall time of a training step goes.

The timer keeps a stack of phases. Every instant belongs to the phase on top of the stack, or to `other` when the stack
is empty, so phases are exclusive and sum to wall time by construction: an optimizer span inside a backward span is
taken out of backward, and evaluation inside nothing is `eval`.

On a CPU an instant is `time.perf_counter()`. On CUDA it is an event recorded on the current stream: no synchronize on
the step path. Events are read once they have completed, some steps later, and go back to a pool. What a CUDA phase
then shows is the time between two points of the stream, idle gaps included: a loader that blocks while the device still
has queued work costs nothing, and shows as nothing.

Cost: one clock reading (0.1 us) or one event (a few us) per phase change, some twenty changes a step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from training.metrics.names import OTHER

Work = TypeVar("Work")


class Clock(Protocol):
    """A source of instants. `mark` must be cheap; `ready` and `seconds` may be asked much later."""

    def mark(self) -> Any:
        """The instant now."""
        ...

    def ready(self, mark: Any) -> bool:
        """Whether the instant is known."""
        ...

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two known instants."""
        ...

    def release(self, mark: Any) -> None:
        """The instant is not needed any more."""
        ...

    def synchronize(self) -> None:
        """Wait until all instants are known."""
        ...


class HostClock:
    """Instants of the host's monotonic clock: known as soon as they are taken."""

    def mark(self) -> float:
        """Seconds of the monotonic clock."""
        return time.perf_counter()

    def ready(self, mark: float) -> bool:
        """Always."""
        return True

    def seconds(self, start: float, end: float) -> float:
        """Their difference."""
        return end - start

    def release(self, mark: float) -> None:
        """Nothing to release."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


class CudaClock:
    """Instants on the current CUDA stream, as timing events from a pool."""

    def __init__(self) -> None:
        import torch

        self._cuda = torch.cuda
        self._pool: list[Any] = []

    def mark(self) -> Any:
        """An event on the current stream."""
        event = self._pool.pop() if self._pool else self._cuda.Event(enable_timing=True)
        event.record()
        return event

    def ready(self, mark: Any) -> bool:
        """Whether the stream has passed the event."""
        return mark.query()

    def seconds(self, start: Any, end: Any) -> float:
        """Of the stream, between two events."""
        return start.elapsed_time(end) / 1e3

    def release(self, mark: Any) -> None:
        """The event returns to the pool."""
        self._pool.append(mark)

    def synchronize(self) -> None:
        """Wait for the device."""
        self._cuda.synchronize()


@dataclass
class Step(Generic[Work]):
    """One optimizer step: seconds by phase, and the work the caller says was done in it."""

    work: Work
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def total_seconds(self) -> float:
        """Of all phases."""
        return sum(self.seconds.values())


@dataclass
class _OpenStep:
    """Phase changes of a step whose marks may still be under way: (phase that ended, mark of its end)."""

    start: Any
    changes: list[tuple[str, Any]] = field(default_factory=list)


class PhaseTimer(Generic[Work]):
    """Attributes time to phases, step by step.

    `start()` opens the first step, `end_step(work)` closes one and opens the next at the same instant, and
    `finished_steps()` hands out the steps whose instants are known by now, oldest first, each once.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.annotate: Callable[[str], AbstractContextManager[Any]] | None = None
        """Entered with the name of each span while set: a profiler's annotation."""
        self._clock: Clock = clock or HostClock()
        self._stack: list[str] = []
        self._open: _OpenStep | None = None
        self._closed: deque[tuple[_OpenStep, Work]] = deque()

    def start(self) -> None:
        """Begin (or begin again, forgetting an unfinished step)."""
        self._open = _OpenStep(self._clock.mark())

    @property
    def running(self) -> bool:
        """Whether a step is open."""
        return self._open is not None

    @property
    def phase(self) -> str:
        """The phase that time belongs to now."""
        return self._stack[-1] if self._stack else OTHER

    def span(self, phase: str) -> AbstractContextManager[None]:
        """Time inside belongs to `phase`, but for what an inner span takes."""
        return _Span(self, phase)

    def _change(self) -> None:
        if self._open is not None:
            self._open.changes.append((self.phase, self._clock.mark()))

    def end_step(self, work: Work) -> None:
        """Close the current step here. A span that is open continues in the next step."""
        if self._open is None:
            raise RuntimeError("PhaseTimer.end_step before start()")
        self._change()
        self._closed.append((self._open, work))
        self._open = _OpenStep(self._open.changes[-1][1])

    def finished_steps(self, *, wait: bool = False) -> list[Step[Work]]:
        """Steps that can be read now; with `wait`, all that were closed (this synchronizes a device)."""
        if wait:
            self._clock.synchronize()
        steps: list[Step[Work]] = []
        while self._closed and self._clock.ready(self._closed[0][0].changes[-1][1]):
            opened, work = self._closed.popleft()
            steps.append(self._read(opened, work))
        return steps

    def _read(self, opened: _OpenStep, work: Work) -> Step[Work]:
        step: Step[Work] = Step(work)
        previous = opened.start
        for phase, mark in opened.changes:
            step.seconds[phase] = step.seconds.get(phase, 0.0) + self._clock.seconds(previous, mark)
            self._clock.release(previous)  # the last mark starts the next step and is released there
            previous = mark
        return step


class _Span:
    """What `PhaseTimer.span` returns: a class takes half the time of a generator."""

    __slots__ = ("_annotation", "_phase", "_timer")

    def __init__(self, timer: PhaseTimer[Any], phase: str) -> None:
        self._timer = timer
        self._phase = phase
        self._annotation: AbstractContextManager[Any] | None = None

    def __enter__(self) -> None:
        timer = self._timer
        if timer.annotate is not None:
            self._annotation = timer.annotate(self._phase)
            self._annotation.__enter__()
        timer._change()
        timer._stack.append(self._phase)

    def __exit__(self, *exception: Any) -> None:
        self._timer._change()
        self._timer._stack.pop()
        if self._annotation is not None:
            self._annotation.__exit__(*exception)


def build_phase_timer(device_type: str) -> PhaseTimer[Any]:
    """The timer for a `torch.device.type`: events on CUDA, the host's clock elsewhere."""
    return PhaseTimer(CudaClock() if device_type == "cuda" else HostClock())
