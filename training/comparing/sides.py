"""The runs of each side, and what of them is compared: which metrics, which windows, with which weights.

Left out are each launch's first steps (allocation, autotuning, caches; `skipped_steps`) and what is no measurement of
the run as a whole (sums of an epoch, single ranks, the learning rate). A mean over windows is weighted so that it is
total over total: times and sizes by steps, rates (tokens/s, MFU) by seconds. Of memory a run has one value, its mean
or its peak.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.errors import UserError
from training.metrics import names
from training.reporting.run_reader import RUN_FILES, Run, load_run
from training.reporting.statistics import step_weights

WARMUP_STEPS = 2
WARMUP_SHARE = 0.1
PERIODIC = (names.CHECKPOINT, names.EVAL, names.LOGGING)
PERIODIC_KEYS = tuple(names.phase_key(phase) for phase in PERIODIC)
STEP_WITHOUT_PERIODIC = "step_ms without checkpoint, eval, logging"

RATES = (
    names.PERF_TOKENS_PER_SECOND, names.PERF_TOKENS_PER_SECOND_PER_DEVICE, names.PERF_MODEL_TFLOPS_PER_DEVICE,
    names.PERF_MFU_PCT, names.PERF_MFU_PALM_PCT, names.PERF_HFU_PCT,
)  # fmt: skip
MEMORY = (
    names.PERF_MEMORY_PEAK_GIB, names.PERF_MEMORY_ALLOCATED_GIB, names.PERF_MEMORY_RESERVED_GIB,
    names.PERF_GPU_MEMORY_USED_PCT,
)  # fmt: skip
MEANS = (names.PERF_USEFUL_TOKENS_PCT, names.PERF_GPU_UTILIZATION_PCT)
SPEED = (names.PERF_STEP_MS, STEP_WITHOUT_PERIODIC, *RATES)
PHASE_KEYS = tuple(names.phase_key(phase) for phase in names.PHASES)


@dataclass(frozen=True)
class WindowValues:
    """One quantity of one run: `values` (n,) of its windows, `weights` (n,) that make their mean that of the run."""

    values: np.ndarray
    weights: np.ndarray

    def mean(self) -> float:
        """Of the run."""
        return float(np.average(self.values, weights=self.weights))


@dataclass(frozen=True)
class Side:
    """One or more runs of one configuration; `name` is a letter."""

    name: str
    runs: tuple[Run, ...]

    def describe(self) -> str:
        """`A: runs/base`, or the first of several and their number."""
        first = self.runs[0].path
        more = f" and {len(self.runs) - 1} more" if len(self.runs) > 1 else ""
        return f"{self.name}: {first}{more}"


def load_side(name: str, paths: Iterable[str | Path]) -> Side:
    """The runs at `paths`; a directory that is no run itself stands for all runs right in it.

    Raises UserError when one is no run, holds none, or has logged nothing.
    """
    runs = tuple(load_run(path) for given in paths for path in _find_runs(Path(given)))
    for run in runs:
        if not len(run.metrics):
            raise UserError(f"{run.path}: nothing was logged in metrics.jsonl, there is nothing to compare")
    return Side(name, runs)


def _find_runs(path: Path) -> list[Path]:
    if not path.is_dir() or any((path / file).exists() for file in RUN_FILES):
        return [path]
    found = sorted(below for below in path.iterdir() if (below / "metrics.jsonl").exists())
    return found or [path]  # `load_run` says what is wrong with it


def first_counted_step(run: Run, skip_steps: int | None) -> int:
    """Windows count that begin at this step or later: past `skip_steps`, else past the first tenth and 2 steps."""
    if skip_steps is not None:
        return skip_steps
    return max(WARMUP_STEPS, round(WARMUP_SHARE * run.metrics.last_step))


def find_windows(run: Run, key: str, skip_steps: int | None = None) -> WindowValues | None:
    """The counted windows of `key` in `run`; None when there is none. A window after a resume's first steps is kept
    out as at the start."""
    is_of_step = key == STEP_WITHOUT_PERIODIC or key in PHASE_KEYS
    series = run.series(names.PERF_STEP_MS if is_of_step else key)
    weights = step_weights(series.steps)
    begins = series.steps - weights
    values = _at_rows(run, key, series.rows) if key in PHASE_KEYS else series.values.copy()
    if key == STEP_WITHOUT_PERIODIC:
        values -= sum((_find_longest(run, phase, series.rows) for phase in PERIODIC), np.zeros(len(values)))
    if key in RATES:
        weights = weights * _at_rows(run, names.PERF_STEP_MS, series.rows, missing=1.0)
    counted = np.isfinite(values) & (weights > 0) & (begins >= first_counted_step(run, skip_steps))
    for event in run.events:
        if event.get("kind") == "resume" and isinstance(event.get("step"), int):
            counted &= (begins < event["step"]) | (begins >= event["step"] + WARMUP_STEPS)
    if not counted.any():
        return None
    windows = WindowValues(values[counted], weights[counted])
    if key == names.PERF_MEMORY_PEAK_GIB:
        return one_value(float(windows.values.max()))
    return one_value(windows.mean()) if key in MEMORY else windows


def one_value(value: float) -> WindowValues:
    """A quantity that a run has once."""
    return WindowValues(np.array([value]), np.ones(1))


def _find_longest(run: Run, phase: str, rows: np.ndarray) -> np.ndarray:
    """Of `phase` on the rank where it took longest: while one draws or writes, the others wait, in another phase."""
    mean = _at_rows(run, names.phase_key(phase), rows)
    return np.maximum(mean, _at_rows(run, names.spread_key(phase, "max"), rows))


def _at_rows(run: Run, key: str, rows: np.ndarray, missing: float = 0.0) -> np.ndarray:
    """Values of `key` on the lines `rows` (n,); `missing` where a line has none: a phase left out took no time."""
    series = run.series(key).finite()
    values = np.full(len(rows), missing)
    at = np.searchsorted(series.rows, rows)
    there = at < len(series)
    there[there] = series.rows[at[there]] == rows[there]
    values[there] = series.values[at[there]]
    return values


def find_metrics(sides: Sequence[Side]) -> list[str]:
    """Keys that every run of every side has measured, speed first; those of a phase are `PHASE_KEYS`.

    A phase that one run has is one of all that time their steps: elsewhere it took no time.
    """
    known = (*SPEED, *PHASE_KEYS, *MEMORY, *MEANS)
    runs = [run for side in sides for run in side.runs]
    timed = all(_is_measured(run, names.PERF_STEP_MS) for run in runs)
    enough = {key: any if timed and key in PHASE_KEYS else all for key in known}
    return [key for key in known if enough[key](_is_measured(run, key) for run in runs)]


def _is_measured(run: Run, key: str) -> bool:
    if key == STEP_WITHOUT_PERIODIC:
        return _is_measured(run, names.PERF_STEP_MS) and any(_is_measured(run, periodic) for periodic in PERIODIC_KEYS)
    return bool(len(run.series(key).finite()))
