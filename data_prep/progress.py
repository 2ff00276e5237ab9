"""Shows the progress of a long step: a bar on a terminal, or a log line every ten seconds.

    with progress("building the store", total=size, unit="B") as advance:
        for part in parts:
            advance(part.size)

A step that ends within SHOW_AFTER seconds is not shown. A separate thread shows the progress, so even a step that is a
single long call (`advance` is never called, `total` is None) shows its elapsed time. The unit "B" is shown in MB and
GB; other units are counted. Of nested steps, only the outermost is shown.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

logger = logging.getLogger("redline.data")

SHOW_AFTER = 3.0
LINE_EVERY = 10.0
Item = TypeVar("Item")
Advance = Callable[[float], None]
_shown = threading.Lock()  # held by the outermost step


@contextmanager
def progress(what: str, total: float | None = None, unit: str = "") -> Iterator[Advance]:
    """Show the progress of the block, which calls the yielded function with each completed amount."""
    if not _shown.acquire(blocking=False):
        yield lambda amount: None
        return
    step = _Step(what, total, unit)
    shown = threading.Thread(target=step.show, daemon=True)
    shown.start()
    try:
        yield step.advance
    finally:
        step.end()
        shown.join()
        _shown.release()


def track(items: Iterable[Item], what: str, total: float | None, unit: str, size: Callable[[Item], float]):
    """Yield the items, and show the progress by their `size`."""
    with progress(what, total, unit) as advance:
        for item in items:
            yield item
            advance(size(item))


class _Step:
    """The progress of a step, which `show` displays until `end`."""

    def __init__(self, what: str, total: float | None, unit: str):
        self._what, self._total, self._unit = what, total, unit
        self._done = 0.0
        self._started = time.monotonic()
        self._over = threading.Event()

    def advance(self, amount: float) -> None:
        self._done += amount

    def end(self) -> None:
        self._over.set()

    def show(self) -> None:
        # of several ranks, only the first shows it
        if self._over.wait(SHOW_AFTER) or os.environ.get("RANK", "0") not in ("", "0"):
            return
        if sys.stderr.isatty():
            self._show_bar()
            return
        wait = LINE_EVERY - SHOW_AFTER
        while not self._over.wait(wait):
            logger.info("%s: %s", self._what, self.describe())
            wait = LINE_EVERY

    def describe(self) -> str:
        """Describe the progress, for example "1.2 of 4.0 GB, 35.1 MB/s, 80 s left (40 s so far)"."""
        seconds = time.monotonic() - self._started
        so_far = f"{_format_seconds(seconds)} so far"
        if not self._done or not seconds:
            return so_far
        rate = self._done / seconds
        done = format_amount(self._done, self._unit)
        if self._total is None:
            return f"{done}, {format_amount(rate, self._unit)}/s ({so_far})"
        left = _format_seconds(max(0.0, self._total - self._done) / rate)
        of_total = f"{done} of {format_amount(self._total, self._unit)}, {format_amount(rate, self._unit)}/s"
        return f"{of_total}, {left} left ({so_far})"

    def _show_bar(self) -> None:
        from rich.console import Console  # imported here: takes 0.1 s
        from rich.progress import BarColumn, Progress, TextColumn

        columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}")]
        with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4) as bar:
            task = bar.add_task(self._what, total=self._total, state=self.describe())
            while not self._over.wait(0.25):
                bar.update(task, completed=self._done, state=self.describe())


def format_amount(amount: float, unit: str) -> str:
    """Format an amount, for example "1.2 GB" or "350 documents"."""
    if unit != "B":
        return f"{amount:,.0f} {unit}".rstrip()
    return f"{amount / 1e9:.2f} GB" if amount >= 1e9 else f"{amount / 1e6:.1f} MB"


def _format_seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
