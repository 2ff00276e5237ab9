"""GPU utilisation and memory (`monitor.gpu_every` steps) of the rank's own device, as `torch.cuda` asks the driver."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch

from training.callbacks.contract import StatefulCallback
from training.callbacks.step_recorder import StepRecorder
from training.metrics import names

logger = logging.getLogger("redline.monitor")


@dataclass(eq=False)
class GpuMonitor(StatefulCallback):
    """Reads two numbers of the driver. Where it gives no utilisation, logs one line and records nothing.

    Metrics recorded:
        perf/gpu_utilization_pct    share of the last sampling interval of the driver in which a kernel ran
        perf/gpu_memory_used_pct    memory of the device in use, by whatever process
    """

    trainer: StepRecorder
    device: torch.device
    every: int
    """Optimizer steps between two readings."""

    def __post_init__(self) -> None:
        self._answers = True
        try:
            torch.cuda.utilization(self.device)
        except Exception as error:  # NVML raises its own classes, and they differ between versions
            self._answers = False
            logger.warning("no GPU utilisation in this run: the driver does not answer (%s)", error)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add both metrics to the record of every `every`-th step."""
        if not self._answers or state.global_step % self.every:
            return
        with self.trainer.span(names.LOGGING):
            free, total = torch.cuda.mem_get_info(self.device)
            self.trainer.add_to_record(
                {
                    names.PERF_GPU_UTILIZATION_PCT: float(torch.cuda.utilization(self.device)),
                    names.PERF_GPU_MEMORY_USED_PCT: 100.0 * (total - free) / total,
                }
            )
