"""Where the GPU stood idle, from a trace of a few steps in the Chrome format that `torch.profiler` exports.

The GPU is busy while a kernel, a copy or a fill runs on any of its streams; all else between the beginning of the
first phase and the end of the last one is idle. An idle moment is laid to the phase that the host was in at that time:

    data     data_wait, h2d: there was no batch to work on
    launch   forward, backward, optimizer, other: the host had not launched the next kernel yet

Idling in evaluation, checkpoints and logging is neither. Tracing slows the host down, so `launch` is an upper bound.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from training.metrics import names

BUSY = ("kernel", "gpu_memcpy", "gpu_memset")
DATA = (names.DATA_WAIT, names.H2D)
AWAY = (names.EVAL, names.CHECKPOINT, names.LOGGING, names.CACHE_CLEAR)


@dataclass(frozen=True)
class Idle:
    """Milliseconds of a whole trace."""

    total_ms: float
    data_ms: float
    launch_ms: float


def read_trace(path: Path) -> list[Mapping[str, Any]]:
    """Events of an exported `.json.gz`."""
    return orjson.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def find_idle(events: Iterable[Mapping[str, Any]]) -> Idle | None:
    """None when the trace has no work of a GPU, or no phase."""
    busy: list[tuple[float, float]] = []
    phases: list[tuple[float, float, str]] = []
    for event in events:
        if event.get("ph") != "X":
            continue
        start, end = event["ts"], event["ts"] + event.get("dur", 0)
        if event.get("cat") in BUSY:
            busy.append((start, end))
        elif event.get("cat") == "user_annotation" and event.get("name") in names.PHASES:
            phases.append((start, end, event["name"]))
    if not busy or not phases:
        return None
    begin, end = min(start for start, _, _ in phases), max(stop for _, stop, _ in phases)
    away = [(start, stop) for start, stop, phase in phases if phase in AWAY]
    gaps = _complement([*busy, *away], begin, end)
    data = _overlap(gaps, [(start, stop) for start, stop, phase in phases if phase in DATA])
    return Idle(_measure(_complement(busy, begin, end)) / 1e3, data / 1e3, (_measure(gaps) - data) / 1e3)


def _merge(intervals: Iterable[tuple[float, float]]) -> np.ndarray:
    """The union, as disjoint intervals (n, 2) in order."""
    merged: list[list[float]] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return np.array(merged, dtype=np.float64).reshape(-1, 2)


def _complement(intervals: Iterable[tuple[float, float]], begin: float, end: float) -> np.ndarray:
    """What of [begin, end] no interval covers, (n, 2)."""
    covered = np.clip(_merge(intervals), begin, end)
    gaps = np.column_stack([np.append(begin, covered[:, 1]), np.append(covered[:, 0], end)])
    return gaps[gaps[:, 1] > gaps[:, 0]]


def _measure(intervals: np.ndarray) -> float:
    """Sum of lengths of disjoint intervals (n, 2)."""
    return float((intervals[:, 1] - intervals[:, 0]).sum())


def _overlap(gaps: np.ndarray, intervals: list[tuple[float, float]]) -> float:
    """Length of what of `gaps` (n, 2), disjoint and in order, lies in the union of `intervals`."""
    total = 0.0
    for start, end in _merge(intervals):
        total += _measure(np.clip(gaps, start, end))
    return total
