"""Memory in use, as the allocator (CUDA) or the operating system (CPU) counts it, in GiB."""

from __future__ import annotations

import os
from functools import cache

import psutil
import torch

from training.metrics import names
from training.metrics.resident import read_resident

GIB = 2**30


def measure_memory(device: torch.device) -> dict[str, float]:
    """Allocated, reserved and peak of this rank. On a CPU: resident set now and at its peak; nothing is reserved."""
    allocated = measure_allocated_bytes(device) / GIB
    if device.type == "cuda":
        return {
            names.PERF_MEMORY_ALLOCATED_GIB: allocated,
            names.PERF_MEMORY_RESERVED_GIB: torch.cuda.memory_reserved(device) / GIB,
            names.PERF_MEMORY_PEAK_GIB: torch.cuda.max_memory_allocated(device) / GIB,
        }
    peak = max(read_resident(os.getpid()).peak / GIB, allocated)  # the kernel counts the peak lazily
    return {names.PERF_MEMORY_ALLOCATED_GIB: allocated, names.PERF_MEMORY_PEAK_GIB: peak}


def measure_allocated_bytes(device: torch.device) -> int:
    """What the allocator holds for tensors (CUDA), or the resident set of the process (CPU)."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _process(os.getpid()).memory_info().rss


@cache
def _process(pid: int) -> psutil.Process:
    """Looking a process up takes longer than asking it."""
    return psutil.Process(pid)
