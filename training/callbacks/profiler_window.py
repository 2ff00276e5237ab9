"""A `torch.profiler` window on request (`perf.profile_steps: [10, 13]`): steps 10 to 13, both included.

Every rank leaves `RUN/profile/rank-R.json.gz`, to be opened in https://ui.perfetto.dev or chrome://tracing; the phases
of a step are in it by name. The steps inside are slower; their time is in the metrics like any other, starting and
exporting as `logging`.

Metrics recorded at the last of the steps, on a GPU, of this rank (`metrics.idle`):
    perf/gpu_idle_data_ms      the GPU had nothing to do: the batch was not there; per step
    perf/gpu_idle_launch_ms    the GPU had nothing to do: the host had not launched it; per step
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import TrainerCallback

from training.callbacks.spans import StepRecorder
from training.metrics import names
from training.metrics.idle import find_idle, read_trace
from training.run_dir import RunDir

logger = logging.getLogger("redline.train")


class ProfilerWindow(TrainerCallback):
    def __init__(self, trainer: StepRecorder, run_dir: RunDir, rank: int, first: int, last: int) -> None:
        self._trainer = trainer
        self._run_dir = run_dir
        self._rank = rank
        self._first, self._last = first, last
        self._profile: profile | None = None
        self._begun = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._profile is None and self._first <= state.global_step + 1 <= self._last:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            with self._trainer.span(names.LOGGING):
                self._profile = profile(activities=activities, record_shapes=True)
                self._profile.__enter__()
                self._begun = state.global_step
            self._trainer.annotate_spans(record_function)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._profile is not None and (state.global_step >= self._last or state.global_step >= state.max_steps):
            self._trainer.annotate_spans(None)
            with self._trainer.span(names.LOGGING):
                trace = self._export(state.global_step)
                self._record_idle(trace, state.global_step - self._begun)

    def _export(self, step: int) -> Path:
        assert self._profile is not None
        self._profile.__exit__(None, None, None)
        trace = self._run_dir.path / "profile" / f"rank-{self._rank}.json.gz"
        Path(trace.parent).mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(trace))
        self._profile = None
        if self._rank == 0:
            self._run_dir.append_event("profile", step, f"steps {self._first}-{step} traced to profile/{trace.name}")
        return trace

    def _record_idle(self, trace: Path, num_steps: int) -> None:
        """What a trace cannot tell, whatever the reason, is left out: the run goes on."""
        try:
            idle = find_idle(read_trace(trace))
        except (OSError, ValueError, KeyError) as error:
            logger.warning("%s: cannot be read, GPU idle time is left out (%s)", trace, error)
            return
        if idle is not None:
            self._trainer.add_to_record(
                {
                    names.PERF_GPU_IDLE_DATA_MS: idle.data_ms / num_steps,
                    names.PERF_GPU_IDLE_LAUNCH_MS: idle.launch_ms / num_steps,
                }
            )
