"""One call in a fresh process: nothing that an earlier call imported, cached or allocated helps or burdens it.

With `watch`, the memory of every process under it is read 20 times a second. On Linux the peak is the kernel's own
high water mark of resident memory (`VmHWM`), so nothing between two looks is missed but the last 50 ms of a process
that ends before the call does. (`getrusage` would not do: a spawned process starts with the high water mark of the one
that spawned it.) Resident memory counts mapped files; `private` is what the process allocated itself.
"""

import contextlib
import multiprocessing
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Generic, Protocol, TypeVar

import psutil

from training.metrics.resident import read_resident

Result = TypeVar("Result")
LOOKS_PER_SECOND = 20


@dataclass(frozen=True)
class PeakMemory:
    """Most bytes that one process held: resident (with the files it maps) and private (its own allocations)."""

    resident: int = 0
    private: int = 0

    def join(self, other: "PeakMemory") -> "PeakMemory":
        """The larger of both, each on its own."""
        return PeakMemory(max(self.resident, other.resident), max(self.private, other.private))


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What a call returned and, where it was watched, the peaks of its process and of those that it started."""

    value: Result
    main: PeakMemory = PeakMemory()
    workers: list[PeakMemory] = field(default_factory=list)


class ProcessRunner(Protocol):
    """`run_fresh`, or what stands in for it in tests."""

    def __call__(self, function: Callable[..., Result], *args: Any, watch: bool = False) -> Outcome[Result]:
        """Run the function in a fresh process; `watch` follows its memory."""
        ...


def run_fresh(function: Callable[..., Result], *args: Any, watch: bool = False) -> Outcome[Result]:
    """Call a module-level function in a spawned process. Raises RuntimeError with its traceback when it fails."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, args))
    process.start()
    sender.close()
    peaks: dict[int, PeakMemory] = {}
    while not receiver.poll(1 / LOOKS_PER_SECOND):
        if watch and process.pid is not None:
            update_peaks(process.pid, peaks)
    try:
        value, error, own = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{function.__name__}: its process died with exit code {process.exitcode}") from None
    process.join()
    if error:
        raise RuntimeError(f"{function.__name__} failed in its own process:\n{error}")
    if not watch:
        return Outcome(value)
    main = peaks.pop(process.pid or 0, own).join(own)
    return Outcome(value, main, list(peaks.values()))


def _call(sender: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    value, error = None, ""
    try:
        value = function(*args)
    except BaseException:
        error = traceback.format_exc()
    sender.send((value, error, read_peak(psutil.Process())))


def update_peaks(pid: int, peaks: dict[int, PeakMemory]) -> None:
    """Read the memory of a process and of all under it into `peaks`, by process id."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
                peaks[process.pid] = read_peak(process).join(peaks.get(process.pid, PeakMemory()))


def read_peak(process: psutil.Process) -> PeakMemory:
    """Most resident memory so far and private memory now; without /proc both are resident memory now."""
    resident = read_resident(process.pid)
    return PeakMemory(resident.peak, resident.private)
