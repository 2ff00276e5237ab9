"""A `torch.profiler` window on request (`perf.profile_steps: [10, 13]`): steps 10 to 13, both included.

Every rank leaves `RUN/profile/rank-R.json.gz`, to be opened in https://ui.perfetto.dev or chrome://tracing. The steps
inside are slower; their time is in the metrics like any other, starting and exporting as `logging`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from training.callbacks.spans import StepRecorder
from training.metrics import names
from training.run_dir import RunDir


class ProfilerWindow(TrainerCallback):
    def __init__(self, trainer: StepRecorder, run_dir: RunDir, rank: int, first: int, last: int) -> None:
        self._trainer = trainer
        self._run_dir = run_dir
        self._rank = rank
        self._first, self._last = first, last
        self._profile: profile | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._profile is None and self._first <= state.global_step + 1 <= self._last:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            with self._trainer.span(names.LOGGING):
                self._profile = profile(activities=activities, record_shapes=True)
                self._profile.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._profile is not None and (state.global_step >= self._last or state.global_step >= state.max_steps):
            with self._trainer.span(names.LOGGING):
                self._export(state.global_step)

    def _export(self, step: int) -> None:
        assert self._profile is not None
        self._profile.__exit__(None, None, None)
        trace = self._run_dir.path / "profile" / f"rank-{self._rank}.json.gz"
        Path(trace.parent).mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(trace))
        self._profile = None
        if self._rank == 0:
            self._run_dir.append_event("profile", step, f"steps {self._first}-{step} traced to profile/{trace.name}")
