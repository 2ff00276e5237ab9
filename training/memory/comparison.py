"""After a run: the peak that the plan predicts for it, beside the one that was measured.

Like is compared with like. On CUDA both are bytes of tensors: the plan's allowances (context, fragmentation) are left
out, and so is what the allocator reserves. On a CPU the measured peak is resident memory of the whole process, so what
was resident before the model was built is taken off; where preparing the data had made the process larger than its
training did, there is nothing to compare. Libraries loaded later and freed memory that the allocator keeps stay in the
measured peak.

Costs two traces of the model on fake tensors, seconds for a small one, on one rank, after training. Never fails a run.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from training.allocator import release_free_memory
from training.memory.run_plan import BuildModel, Planner
from training.metrics import names
from training.metrics.memory import GIB, measure_memory

if TYPE_CHECKING:
    from training.config import LoadedConfig

logger = logging.getLogger("redline.train")


@dataclass(frozen=True)
class MemoryBase:
    """GiB of the process when its model was not yet built: now, and at its peak so far. 0 on CUDA."""

    resident_gib: float = 0.0
    peak_gib: float = 0.0


@dataclass(frozen=True)
class PeakComparison:
    """GiB of one rank. None where it could not be known; `note` says why."""

    predicted_gib: float | None = None
    measured_gib: float | None = None
    """Of the training: `base_gib` is taken off."""
    base_gib: float | None = None
    predicted_pct: float | None = None
    """Predicted over measured."""
    note: str = ""


def measure_base(device: torch.device) -> MemoryBase:
    """Call it before the model is built.

    Freed memory that the allocator of the run keeps is returned first: training uses it again, so it would be taken
    off the measured peak although training needs it.
    """
    if device.type == "cuda":
        return MemoryBase()
    release_free_memory()
    memory = measure_memory(device)
    return MemoryBase(memory[names.PERF_MEMORY_ALLOCATED_GIB], memory[names.PERF_MEMORY_PEAK_GIB])


def compare_peak(
    loaded: LoadedConfig,
    build: BuildModel,
    base: MemoryBase,
    peak_gib: float | None,
    *,
    world_size: int,
    device: torch.device,
) -> PeakComparison:
    """Predict the peak of a rank and compare the run's highest `perf/memory_peak_gib` with it.

    build: as of `Planner`. Whatever goes wrong is one line in the log and in `note`.
    """
    try:
        planner = Planner(loaded, build, world_size, on_gpu=device.type == "cuda")
        estimate = planner.estimate(int(loaded.config.argument("per_device_train_batch_size")))
        evaluation = planner.estimate_evaluation()
    except Exception as error:  # the run is over and good, whatever an estimate makes of its model
        reason = f"the peak could not be predicted: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        logger.warning("memory: %s", reason)
        return PeakComparison(base_gib=base.resident_gib, note=reason)
    on_host = 0 if device.type == "cuda" else estimate.host  # on a CPU all of it is the process
    predicted = (max(estimate.tensor_peak, evaluation.tensor_peak if evaluation else 0) + on_host) / GIB
    if peak_gib is None:
        return PeakComparison(predicted, None, base.resident_gib, None, "no peak was measured")
    if base.peak_gib and peak_gib <= base.peak_gib:
        note = f"the process held {base.peak_gib:.2f} GiB before it built the model, and no more while training"
        return PeakComparison(predicted, None, base.resident_gib, None, note)
    measured = peak_gib - base.resident_gib
    return PeakComparison(predicted, measured, base.resident_gib, 100 * predicted / measured)
