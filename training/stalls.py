"""Notices that a rank makes no progress, and writes down where each of its threads stands.

A thread of its own in each rank compares the time since the last sign of progress with the budget of the section under
way. The main thread may hang in a collective, in a file system, or in a lock: Python still runs this one.
"""

from __future__ import annotations

import faulthandler
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger("redline.train")

STALLED = 124
"""Exit code of a rank that `monitor.on_stall: stop` ends."""
STEP_FACTOR = 20
SETUP_FACTOR = 6
NUM_STEPS = 50
ASK = "asked"
ANSWER_SECONDS = 3.0


@dataclass(frozen=True)
class Stall:
    """A section that has gone on for too long, on this rank or (`is_asked`) on another that asks for stacks."""

    rank: int
    step: int
    section: str
    seconds: float
    budget: float
    is_asked: bool

    def __str__(self) -> str:
        where = f"rank {self.rank}: {self.seconds:.0f} s in {self.section} after step {self.step}"
        if self.is_asked:
            return f"{where}; another rank makes no progress"
        return f"{where} without progress (budget {self.budget:.0f} s)"


class StallWatch:
    """Watches the main thread from `start` to `stop`.

    `folder`: where stacks go; None: stderr. seconds: the least budget (s); a step has `STEP_FACTOR` times the longest
    of the last steps if that is more, set-up, the first step and a save `SETUP_FACTOR` times as much. on_stall: called
    in the watching thread, once for each stall.
    """

    def __init__(self, rank: int, seconds: float, on_stall: Callable[[Stall], None]) -> None:
        self._rank, self._seconds, self._on_stall = rank, seconds, on_stall
        self._section, self._since, self._last_step = "set-up", time.monotonic(), 0.0
        self._steps: deque[float] = deque(maxlen=NUM_STEPS)
        self._step, self._is_told = 0, False
        self._over = threading.Event()
        self.folder: Path | None = None
        self._dumped_at = time.time()

    def start(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._watch, name="stalls", daemon=True).start()

    def stop(self) -> None:
        """The rest is not watched."""
        self._over.set()

    def write_to(self, folder: Path) -> None:
        """Where stacks go: `rank-R.txt` in this folder. Before, to stderr."""
        self.folder = folder

    def enter(self, section: str) -> None:
        """A sign of progress: this section begins, or goes on."""
        self._section, self._since, self._is_told = section, time.monotonic(), False

    def end_step(self, step: int, *, took_only_a_step: bool) -> None:
        """This step has ended and the next begins. took_only_a_step: nothing else was done since the last one ended."""
        self._step, now = step, time.monotonic()
        if self._last_step and took_only_a_step:
            self._steps.append(now - self._last_step)
        self._last_step = now
        self.enter("a step")

    @property
    def budget(self) -> float:
        """Seconds that the section under way may take without a sign of progress."""
        if not self._steps:
            return SETUP_FACTOR * self._seconds
        scaled = max(self._seconds, STEP_FACTOR * max(self._steps))
        return SETUP_FACTOR * scaled if self._section == "a save" else scaled

    def _watch(self) -> None:
        every = min(1.0, self._seconds / 5)
        looked = time.monotonic()
        while not self._over.wait(every):
            looked, pause = time.monotonic(), time.monotonic() - looked
            if pause > 10 * every:  # the whole process was suspended
                self._since += pause
            seconds = looked - self._since
            is_late = seconds > self.budget and not self._is_told
            if is_late or self._is_asked():
                self._is_told = True
                stall = Stall(self._rank, self._step, self._section, seconds, self.budget, is_asked=not is_late)
                self.dump(str(stall))
                if is_late:
                    self._ask_others()
                self._on_stall(stall)

    def dump(self, title: str) -> None:
        """Write the stacks of all threads under a title."""
        self._dumped_at = time.time()
        header = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {title}\n"
        if self.folder is None:
            logger.warning("%s", title)
            faulthandler.dump_traceback(all_threads=True)
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / f"rank-{self._rank}.txt").open("a", encoding="utf-8") as file:
                file.write(header)
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
                file.write("\n")
        except OSError as error:
            logger.warning("%s; its stacks cannot be written: %s", title, error)

    def _ask_others(self) -> None:
        if self.folder is not None:
            try:
                (self.folder / ASK).touch()
            except OSError as error:
                logger.warning("other ranks cannot be asked for their stacks: %s", error)

    def _is_asked(self) -> bool:
        if self.folder is None:
            return False
        try:
            return (self.folder / ASK).stat().st_mtime > self._dumped_at + ANSWER_SECONDS
        except OSError:
            return False
