"""Ends a rank whose launcher is gone: nobody would end it, and it would train on beside the run that takes its place.

`torchrun` and `accelerate launch` are the parent of a rank. `deepspeed` is the parent of a second program
(`deepspeed.launcher.launch`), which does not end with it: a signal to `deepspeed` leaves that program and its ranks
behind. A rank that `python` started has no launcher: it outlives the shell, as `nohup` wants it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from training.launch import World

WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class Launcher:
    """The processes above a rank that end with the launch: the parent, and of DeepSpeed the parent's parent."""

    parent: int
    runner: int | None

    @classmethod
    def find(cls, world: World) -> Launcher | None:
        """That of this process; None: there is none."""
        if world.launcher == "python":
            return None
        parent = os.getppid()
        runner = _find_parent(parent) if world.launcher == "deepspeed" else None
        return cls(parent, runner if runner and _is_deepspeed(runner) else None)

    def is_gone(self) -> bool:
        """Whether one of them has ended: its child has another parent then."""
        if os.getppid() != self.parent:
            return True
        return self.runner is not None and _find_parent(self.parent) != self.runner


def _find_parent(pid: int) -> int | None:
    try:
        return psutil.Process(pid).ppid()
    except psutil.Error:
        return None


def _is_deepspeed(pid: int) -> bool:
    """Whether this is the command `deepspeed`; else `deepspeed.launcher.launch` was started by other means (ssh)."""
    try:
        return any("deepspeed" in os.path.basename(word) for word in psutil.Process(pid).cmdline()[:3])
    except psutil.Error:
        return False


class LauncherWatch:
    """Calls `on_gone` once, from a thread, when the launcher has ended. From `__enter__` to `__exit__`."""

    def __init__(self, launcher: Launcher | None, on_gone: Callable[[], None]) -> None:
        self._launcher, self._on_gone = launcher, on_gone
        self._over = threading.Event()

    def __enter__(self) -> LauncherWatch:
        if self._launcher is not None:
            threading.Thread(target=self._watch, args=(self._launcher,), name="launcher", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self, launcher: Launcher) -> None:
        while not self._over.wait(WATCH_SECONDS):
            if launcher.is_gone():
                self._on_gone()
                return
