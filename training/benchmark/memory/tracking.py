"""Peak bytes of tensors over one optimizer step of a real run, by PyTorch's own account: nothing of the plan is in it.

On CUDA that is `torch.cuda.max_memory_allocated`, reset when the step begins. On a CPU it is the balance that PyTorch's
allocator keeps of all threads, read from its own events (`torch.profiler`, `profile_memory`); it is kept from before
the model is built, so that what lives when the step begins is in it; the step itself is marked among them. Events are
those of the thread that entered (a backward pass on a CPU runs in it). What the allocator does not hand out is not
seen: weights mapped from a file, arrays of numpy, buffers inside kernels that take their memory from the C library.

`PeakResident` is a second instrument for the CPU, which sees all of these: the kernel's high water mark of resident
memory, reset when the step begins, less what was resident before the model was built.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import TrainerCallback

from training.metrics.resident import read_resident

MARK = "redline measured step"
C10 = Path(torch.__file__).parent / "lib" / f"libc10.{'dylib' if sys.platform == 'darwin' else 'so'}"
# A flag of c10 (c10/core/CPUAllocator.cpp). Without it only a thread with a profiler counts: a tensor that the thread
# of a collective lets go of would stay in the balance.
COUNT_ALL_THREADS = "FLAGS_caffe2_report_cpu_memory_usage"


class PeakInstrument(Protocol):
    """Entered before the model is built; `peak_bytes` is known when left."""

    def __enter__(self) -> PeakInstrument: ...

    def __exit__(self, *exc: Any) -> None: ...

    def begin_step(self) -> None:
        """The measured step begins."""
        ...

    def end_step(self) -> None:
        """The measured step has ended."""
        ...

    @property
    def peak_bytes(self) -> int:
        """The highest memory of the measured step."""
        ...


class AllocatorEvents:
    """Of the CPU's allocator."""

    def __init__(self) -> None:
        self._profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._counts_all_threads = ctypes.c_bool.in_dll(ctypes.CDLL(str(C10)), COUNT_ALL_THREADS)
        self._mark: Any = None
        self.peak_bytes = 0

    def __enter__(self) -> AllocatorEvents:
        self._counts_all_threads.value = True
        self._profiler.__enter__()
        return self

    def begin_step(self) -> None:
        """Read the peak from here on."""
        self._mark = record_function(MARK)
        self._mark.__enter__()

    def end_step(self) -> None:
        """Stop reading."""
        self._mark.__exit__(None, None, None)

    def __exit__(self, *exc: Any) -> None:
        self._profiler.__exit__(*exc)
        self._counts_all_threads.value = False
        if exc[1] is None:
            results: Any = self._profiler.profiler
            self.peak_bytes = find_peak_bytes(results.kineto_results.experimental_event_tree())


def find_peak_bytes(tree: list[Any]) -> int:
    """Largest balance at an event within the marked span, and at the last one before it, over that at the first event.

    Raises ValueError when the span is not among the events.
    """
    marks: list[Any] = []
    balances: list[tuple[int, int, int]] = []
    events = list(tree)
    while events:
        event = events.pop()
        events.extend(event.children)
        if event.tag == _EventType.Allocation:
            change = event.extra_fields
            balances.append((event.start_time_ns, change.total_allocated, change.alloc_size))
        elif event.name == MARK:
            marks.append(event)
    if len(marks) != 1:
        raise ValueError(f"{len(marks)} spans are called {MARK!r}, there must be one")
    start, end = marks[0].start_time_ns, marks[0].end_time_ns
    balances.sort(key=lambda event: event[0])
    at_start = [balance for when, balance, _ in balances if when < start][-1:]
    peak = max(at_start + [balance for when, balance, _ in balances if start <= when <= end])
    return peak - (balances[0][1] - balances[0][2])


class CudaAllocator:
    """Of CUDA's caching allocator: what it has handed out, not what it has reserved."""

    peak_bytes = 0

    def __enter__(self) -> CudaAllocator:
        return self

    def begin_step(self) -> None:
        """Reset the allocator's peak."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()

    def end_step(self) -> None:
        """Read the allocator's peak."""
        torch.cuda.synchronize()
        self.peak_bytes = torch.cuda.max_memory_allocated()

    def __exit__(self, *exc: Any) -> None:
        return None


class PeakResident:
    """Of the process; as long as the C library gives freed blocks back at once (`RESIDENT_ENVIRONMENT`)."""

    peak_bytes = 0

    def __enter__(self) -> PeakResident:
        self._before = psutil.Process().memory_info().rss
        return self

    def begin_step(self) -> None:
        """Reset the kernel's high water mark."""
        Path("/proc/self/clear_refs").write_text("5")  # the high water mark is now what is resident now

    def end_step(self) -> None:
        """Read the kernel's high water mark."""
        self.peak_bytes = read_resident(os.getpid()).peak - self._before

    def __exit__(self, *exc: Any) -> None:
        return None


class StepMarks(TrainerCallback):
    """Tells an instrument when the step to be measured begins and ends: from the end of the one before to its own."""

    def __init__(self, instrument: PeakInstrument, step: int) -> None:
        self._instrument = instrument
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The second step is the measured one."""
        if state.global_step == self._step - 1:
            self._instrument.begin_step()
        elif state.global_step == self._step:
            self._instrument.end_step()
