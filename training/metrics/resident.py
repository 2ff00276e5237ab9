"""Resident memory of a process, as the kernel counts it. Imports no torch: benchmarks of `data_prep` use it, too."""

from __future__ import annotations

import os
import re
import resource
import sys
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Resident:
    """Bytes: the most that was resident so far, and the private (anonymous) memory now."""

    peak: int
    private: int


def read_resident(pid: int) -> Resident:
    """Memory of process `pid`; zeros for one that has just ended. Raises psutil.NoSuchProcess where there is no /proc.

    Without /proc both are what is resident now, except for the peak of this process itself on macOS.
    """
    try:
        # Not ru_maxrss: on Linux that outlives exec, so it may be the peak of the program that started this one.
        with open(f"/proc/{pid}/status") as status:
            found = re.findall(r"^(VmHWM|RssAnon):\s*(\d+) kB", status.read(), re.MULTILINE)
    except FileNotFoundError:
        now = psutil.Process(pid).memory_info().rss
        is_own = sys.platform == "darwin" and pid == os.getpid()
        return Resident(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if is_own else now, now)
    sizes = {name: int(kilobytes) * 1024 for name, kilobytes in found}
    return Resident(sizes.get("VmHWM", 0), sizes.get("RssAnon", 0))
