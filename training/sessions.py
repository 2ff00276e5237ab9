"""Processes by their session (`setsid`): all that a command has started and that did not leave it on purpose."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from contextlib import suppress

import psutil


def list_sessions(sessions: Collection[int]) -> list[psutil.Process]:
    """The processes of these sessions that are alive."""
    found = []
    for one in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getsid(one.pid) in sessions and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


def end_sessions(sessions: Collection[int], patience_seconds: float) -> int:
    """Wait for the processes of these sessions to end, then kill those that stay; how many those were."""
    deadline = time.monotonic() + patience_seconds
    while (left := list_sessions(sessions)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for one in left:
        with suppress(psutil.Error):
            one.kill()
    psutil.wait_procs(left, timeout=10)
    return len(left)
