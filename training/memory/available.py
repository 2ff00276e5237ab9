"""How much memory a run may plan with on this machine."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from training.memory.estimate import CUDA_CONTEXT_BYTES

KEPT_FREE = 0.2  # of a CPU's available memory: for the page cache, and for what no allocator counts
CGROUP = Path("/sys/fs/cgroup")


def measure_free_bytes(device: torch.device, local_ranks: int) -> int:
    """What a rank may plan with, the CUDA context that it has already and the plan counts again included.

    local_ranks: ranks of this machine, which share the memory of a CPU.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) + CUDA_CONTEXT_BYTES
    return measure_host_share(local_ranks)


def measure_host_share(local_ranks: int) -> int:
    """A rank's share of the host's available memory, in bytes, `KEPT_FREE` left alone."""
    available = min(psutil.virtual_memory().available, _free_of_cgroup())
    return int((1 - KEPT_FREE) * available / local_ranks)


def _free_of_cgroup() -> float:
    """A container's limit (cgroup v2) less what it uses."""
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return float("inf") if limit == "max" else max(0, int(limit) - int(used))
    except (OSError, ValueError):
        return float("inf")
