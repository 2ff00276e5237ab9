"""GPU utilisation and memory as NVML sees them (`monitor.gpu_every` steps), for the rank's own device."""

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
    """Reads two numbers of the driver (about 1 ms). Without NVML it logs one line and records nothing.

    Metrics recorded:
        perf/gpu_utilization_pct    share of the last sampling interval of the driver in which a kernel ran
        perf/gpu_memory_used_pct    memory of the device in use, by whatever process
    """

    trainer: StepRecorder
    device: torch.device
    every: int
    """Optimizer steps between two readings."""

    def __post_init__(self) -> None:
        self._nvml: Any = None
        try:
            import pynvml

            pynvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(self.device).uuid}"
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            self._nvml = pynvml
        except Exception as error:  # NVML raises its own classes, and they differ between versions
            logger.warning("no GPU utilisation in this run: NVML does not answer (%s)", error)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._nvml is None or state.global_step % self.every:
            return
        with self.trainer.span(names.LOGGING):
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
            self.trainer.add_to_record(
                {
                    names.PERF_GPU_UTILIZATION_PCT: float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu),
                    names.PERF_GPU_MEMORY_USED_PCT: 100.0 * memory.used / memory.total,
                }
            )
