"""A `torch.profiler` window on request (`perf.profile_steps: [10, 13]`): steps 10 to 13, both included.

Every rank leaves `RUN/profile/rank-R.json.gz`, to be opened in https://ui.perfetto.dev or chrome://tracing; the phases
of a step are in it by name. The steps inside are slower; their time is in the metrics like any other, starting and
exporting as `logging`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from training.callbacks.contract import StatefulCallback
from training.callbacks.step_recorder import StepRecorder
from training.metrics import names
from training.metrics.idle import find_idle, read_trace
from training.run_dir import RunDir

logger = logging.getLogger("redline.train")


@dataclass(eq=False)
class ProfilerWindow(StatefulCallback):
    """Traces the steps `first` to `last`.

    Metrics recorded at the last of them, on a GPU, of this rank (`metrics.idle`):
        perf/gpu_idle_data_ms      milliseconds a step in which the GPU was idle and the batch was not there
        perf/gpu_idle_launch_ms    milliseconds a step in which the GPU was idle and the host had launched nothing
    """

    trainer: StepRecorder
    run_dir: RunDir
    rank: int
    first: int
    last: int
    _profile: profile | None = None
    _begun: int = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start tracing at the first step of the window."""
        if self._profile is None and self.first <= state.global_step + 1 <= self.last:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            with self.trainer.span(names.LOGGING):
                self._profile = profile(activities=activities, record_shapes=True)
                self._profile.__enter__()
                self._begun = state.global_step
            self.trainer.annotate_spans(record_function)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Export the trace after the last step of the window."""
        if self._profile is not None and (state.global_step >= self.last or state.global_step >= state.max_steps):
            self.trainer.annotate_spans(None)
            with self.trainer.span(names.LOGGING):
                trace = self._export(state.global_step)
                self._record_idle(trace, state.global_step - self._begun)

    def _export(self, step: int) -> Path:
        assert self._profile is not None
        self._profile.__exit__(None, None, None)
        trace = self.run_dir.path / "profile" / f"rank-{self.rank}.json.gz"
        Path(trace.parent).mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(trace))
        self._profile = None
        if self.rank == 0:
            self.run_dir.append_event("profile", step, f"steps {self.first}-{step} traced to profile/{trace.name}")
        return trace

    def _record_idle(self, trace: Path, num_steps: int) -> None:
        """What a trace cannot tell, whatever the reason, is left out: the run continues."""
        try:
            idle = find_idle(read_trace(trace))
        except (OSError, ValueError, KeyError) as error:
            logger.warning("%s: cannot be read, GPU idle time is left out (%s)", trace, error)
            return
        if idle is not None:
            self.trainer.add_to_record(
                {
                    names.PERF_GPU_IDLE_DATA_MS: idle.data_ms / num_steps,
                    names.PERF_GPU_IDLE_LAUNCH_MS: idle.launch_ms / num_steps,
                }
            )
