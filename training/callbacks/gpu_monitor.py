"""GPU utilisation and memory as NVML sees them (`monitor.gpu_every` steps), for the rank's own device.

Metrics recorded:
    perf/gpu_utilization_pct    share of the last sampling interval of the driver in which a kernel ran
    perf/gpu_memory_used_pct    memory of the device in use, by whatever process
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import TrainerCallback

from training.callbacks.spans import StepRecorder
from training.metrics import names

logger = logging.getLogger("redline.monitor")


class GpuMonitor(TrainerCallback):
    """Reads two numbers of the driver (about 1 ms). Without NVML it says so once and stays silent."""

    def __init__(self, trainer: StepRecorder, device: torch.device, every: int) -> None:
        self._trainer = trainer
        self._every = every
        self._nvml: Any = None
        try:
            import pynvml

            pynvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            self._nvml = pynvml
        except Exception as error:  # NVML raises its own classes, and they differ between versions
            logger.warning("no GPU utilisation in this run: NVML does not answer (%s)", error)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._nvml is None or state.global_step % self._every:
            return
        with self._trainer.span(names.LOGGING):
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
            self._trainer.add_to_record(
                {
                    names.PERF_GPU_UTILIZATION_PCT: float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu),
                    names.PERF_GPU_MEMORY_USED_PCT: 100.0 * memory.used / memory.total,
                }
            )
