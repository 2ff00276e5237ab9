"""What a signal does to a run: it is noted, and the run ends, or saves, where it can do so whole.

| signal | set-up | training | after the last step |
|---|---|---|---|
| SIGTERM, SIGINT, SIGHUP | the process ends at once | saved at the step's end, then it ends | the run is finished |
| SIGUSR1 | saved after the first step | saved at the step's end; the run continues | - |
| the launcher is gone | as SIGTERM, and 8 s later the process ends in any case | the same | the same |

A second SIGINT, at least a second after the first, ends the process at once: launchers pass on the one that a terminal
sends to all, so the same key stroke arrives twice. What was being written has no manifest then, and is no checkpoint.

The exit code is 128 + the signal's number unless `checkpoint.stop_exit_code` is set. A signal that is ignored when the
process starts stays so (`nohup`). Python runs handlers between two instructions of the main thread only, which may be
waiting for another rank: so a thread reads the numbers from Python's wake-up descriptor. Processes that are forked
(data workers) ignore what a terminal sends to all: their batches are needed until the step's end. SIGTERM ends them.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any

import psutil

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SAVES = signal.SIGUSR1
SAVE_LEVEL = 1
"""What a request to save is among ranks; a stop is 128 + the signal's number: the greatest wins."""
REPEAT_SECONDS = 1.0
GRACE_SECONDS = 3.0
ORPHAN_SECONDS = 8.0
_END = b"\0"  # the number of no signal


class Stopped(SystemExit):
    """A signal ends the run."""

    def __init__(self, code: int, signal_number: int) -> None:
        super().__init__(code)
        self.exit_code = code
        self.signal_number = signal_number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signal_number).name}"


class StopSignals:
    """Notes signals from `__enter__` to `__exit__`. Does nothing outside the main thread of a process.

    `exit_code`: of a stop; None: 128 + the signal's number. `is_orphan`: whether the launcher is gone.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self.is_orphan = False
        self._saves, self._stop = False, 0
        self._is_training = self._has_raised = False
        self._first_interrupt: float | None = None
        self._deadline = float("inf")
        self._previous: dict[int, Any] = {}
        self._thread: threading.Thread | None = None

    @property
    def level(self) -> int:
        """What was asked of this process, as ranks compare it. 0: nothing."""
        return 128 + self._stop if self._stop else SAVE_LEVEL * self._saves

    def take_level(self) -> int:
        """`level`, and a request to save is then no longer one: all ranks hear of it."""
        level, self._saves = self.level, False
        return level

    def begin_training(self) -> None:
        """From now on a signal waits for the end of the step."""
        self._is_training = True

    def stopped(self, level: int) -> Stopped:
        """What ends the run, by the level that the ranks agreed on."""
        number = level - 128
        return Stopped(self.find_code(number), number)

    def describe(self, level: int) -> str:
        """What was asked, by the level that the ranks agreed on."""
        number = SAVES if level == SAVE_LEVEL else level - 128
        return signal.Signals(number).name

    def find_code(self, signal_number: int) -> int:
        """The exit code of a run that this signal stops."""
        return 128 + signal_number if self.exit_code is None else self.exit_code

    def lose_launcher(self) -> None:
        """Stop as SIGTERM does. A process that is still there after `ORPHAN_SECONDS` ends at once."""
        self.is_orphan = True
        self._deadline = min(self._deadline, time.monotonic() + ORPHAN_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._previous_wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in (*STOPS, SAVES):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        _installed.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is None:
            return
        _installed.discard(self)
        for number, previous in self._previous.items():
            if signal.getsignal(number) == self._handle:  # else somebody has taken over
                signal.signal(number, previous)
        signal.set_wakeup_fd(self._previous_wakeup)
        self._writer.send(_END)  # closing it would not do: forked processes have it, too
        self._thread.join()
        self._writer.close()
        self._reader.close()

    def release_in_fork(self) -> None:
        """In a forked process: all but SIGTERM, by which its parent ends it, are the parent's affair."""
        signal.set_wakeup_fd(-1)
        for number in self._previous:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """In the main thread, between two instructions of it."""
        self._note(number)
        if self._stop and not (self._is_training or self._has_raised):
            self._has_raised = True
            raise Stopped(self.find_code(self._stop), self._stop)

    def _watch(self) -> None:
        """In a thread: the main one may be waiting for another rank."""
        while True:
            left = self._deadline - time.monotonic()
            if left <= 0:
                end_process(self.find_code(self._stop or signal.SIGTERM))
            ready, _, _ = select.select([self._reader], [], [], left if self._deadline < float("inf") else None)
            if not ready:
                continue
            numbers = self._reader.recv(64)
            for number in numbers:
                self._arrive(number)
            if numbers.endswith(_END):
                return

    def _arrive(self, number: int) -> None:
        if number not in (*STOPS, SAVES):
            return
        self._note(number)
        now = time.monotonic()
        if number == signal.SIGINT:
            self._first_interrupt = self._first_interrupt or now
            if now - self._first_interrupt >= REPEAT_SECONDS:
                end_process(self.find_code(number))
        if number in STOPS and not self._is_training:
            self._deadline = min(self._deadline, now + GRACE_SECONDS)

    def _note(self, number: int) -> None:
        if number == SAVES:
            self._saves = True
        elif not self._stop:
            self._stop = number


def end_process(code: int) -> None:
    """End this process and those that it started, at once."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    os._exit(code)


_installed: set[StopSignals] = set()


def _release_in_fork() -> None:
    for one in _installed:
        one.release_in_fork()


os.register_at_fork(after_in_child=_release_in_fork)
