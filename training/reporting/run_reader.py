"""Read a run directory, whatever state it is in.

Guarantees: a run that has only just started, was killed in the middle of a line, or lacks any of its files still
loads; what is missing or unreadable is left out and *said* in `notes`, never replaced by a number. Only a path that
is no run directory at all is an error. Imports neither torch nor the trainer.

Costs: `MetricsLog` reads incrementally. The first `poll()` parses the whole of metrics.jsonl (about 4 us per line and
100 bytes per line in memory), each later one only what was appended, so that a callback may poll at every plot.
"""

from __future__ import annotations

import json
import math
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from data_prep.errors import UserError
from training.reporting.formatting import as_number
from training.reporting.summary import Summary

RUN_FILES = ("config.yaml", "metrics.jsonl", "summary.json", "events.jsonl", "env.json")
CHUNK_BYTES = 16 * 2**20
TAIL_BYTES = 128


@dataclass(frozen=True)
class Series:
    """One metric over a run: the records that hold the key, in order.

    `rows` (num_points,) int64: record number, equal rows belong to one line; `steps` (num_points,) int64: optimizer
    steps done; `values` (num_points,) float64, NaN where the line said null (measured, but not a finite number).
    """

    key: str
    rows: np.ndarray
    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def finite(self) -> Series:
        """The points whose value is finite."""
        return self.where(np.isfinite(self.values))

    def after(self, step: int) -> Series:
        """The points of the steps after `step`."""
        return self.where(self.steps > step)

    def where(self, mask: np.ndarray) -> Series:
        """The points that the mask selects."""
        return Series(self.key, self.rows[mask], self.steps[mask], self.values[mask])

    def last(self) -> float | None:
        """The last finite value; None without one."""
        finite = self.values[np.isfinite(self.values)]
        return float(finite[-1]) if len(finite) else None


class MetricsLog:
    """metrics.jsonl as columns, read incrementally.

    Unknown numeric keys become series like any other; `record` is the last line as it was written. `keys` restricts
    what is kept in memory. A file that was cut back by a resume is read again from its start.
    """

    def __init__(self, path: Path | str, keys: frozenset[str] | None = None):
        self.path = Path(path)
        self.keys = keys
        self._reset()

    def _reset(self) -> None:
        self.steps = array("q")
        self.record: dict[str, Any] = {}
        self.num_bad_lines = 0
        self.first_bad_line: int | None = None
        self.num_superseded = 0
        self.torn = False
        self._columns: dict[str, tuple[array, array]] = {}
        self._offset = 0
        self._num_lines = 0
        self._tail = b""

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def last_step(self) -> int:
        """Optimizer steps of the last record; 0 without one."""
        return self.steps[-1] if self.steps else 0

    def names(self) -> list[str]:
        """All keys that were read."""
        return list(self._columns)

    def series(self, key: str) -> Series:
        """The series of `key`; empty when no line holds it."""
        rows, values = self._columns.get(key, (array("q"), array("d")))
        index = np.array(rows, dtype=np.int64)
        return Series(key, index, np.array(self.steps, dtype=np.int64)[index], np.array(values, dtype=np.float64))

    def poll(self) -> int:
        """Read the complete lines appended since the last call; the number of records added."""
        if not self.path.exists():
            return 0
        before = len(self)
        with self.path.open("rb") as file:
            if not self._continues(file):
                self._reset()
                before = 0
            file.seek(self._offset)
            rest = b""
            while chunk := file.read(CHUNK_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._take(line)
                if lines:
                    self._tail = (self._tail + b"\n".join(lines) + b"\n")[-TAIL_BYTES:]
                    self._offset += sum(map(len, lines)) + len(lines)
        self.torn = bool(rest.strip())
        return max(len(self) - before, 0)

    def notes(self) -> list[str]:
        """What was left out, one sentence each."""
        notes = []
        if self.torn:
            notes.append(f"{self.path.name}: the last line is incomplete (killed, or still writing) and was skipped.")
        if self.num_bad_lines:
            notes.append(
                f"{self.path.name}: {self.num_bad_lines} unreadable line(s) skipped, first line {self.first_bad_line}."
            )
        if self.num_superseded:
            notes.append(f"{self.path.name}: {self.num_superseded} record(s) replaced by later ones of earlier steps.")
        return notes

    def _continues(self, file: Any) -> bool:
        """Whether the file still begins with what was read: the bytes before the offset are the same."""
        file.seek(self._offset - len(self._tail))
        return file.read(len(self._tail)) == self._tail

    def _take(self, line: bytes) -> None:
        self._num_lines += 1
        if not line.strip():
            return
        record = parse_object(line)
        step = record.get("step") if record else None
        if record is None or not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 2**62:
            self.num_bad_lines += 1
            self.first_bad_line = self.first_bad_line or self._num_lines
            return
        if self.steps and step < self.steps[-1]:
            self._forget_after(step)
        row = len(self.steps)
        self.steps.append(step)
        self.record = record
        for key, value in record.items():
            if key == "step" or (self.keys is not None and key not in self.keys):
                continue
            number = math.nan if value is None else as_number(value, not_finite=math.nan)
            if number is not None:
                rows, values = self._columns.setdefault(key, (array("q"), array("d")))
                rows.append(row)
                values.append(number)

    def _forget_after(self, step: int) -> None:
        num_kept = bisect_right(self.steps, step)
        self.num_superseded += len(self.steps) - num_kept
        del self.steps[num_kept:]
        for rows, values in self._columns.values():
            keep = bisect_right(rows, num_kept - 1)
            del rows[keep:], values[keep:]


@dataclass(frozen=True)
class Run:
    """A run directory as loaded: see the contract in docs/metrics.md for what each file holds."""

    path: Path
    metrics: MetricsLog
    events: list[dict[str, Any]] = field(default_factory=list)
    summary: Summary | None = None
    """None: the run has not ended."""
    env: dict[str, Any] = field(default_factory=dict)
    ds_config: dict[str, Any] | None = None
    config_text: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """As the summary has it, else the directory's."""
        return str((self.summary and self.summary.name) or self.path.resolve().name)

    def series(self, key: str) -> Series:
        """One metric over the run."""
        return self.metrics.series(key)

    def recorded(self, key: str) -> Any:
        """The value of a fact that the summary holds at the end and an event may hold before it."""
        if (value := getattr(self.summary, key, None)) is not None:
            return value
        return next((event[key] for event in reversed(self.events) if event.get(key) is not None), None)


def parse_object(line: bytes) -> dict[str, Any] | None:
    """One JSON object, `None` when it is none. `NaN` and `Infinity`, which JSON forbids, are read too."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            value = json.loads(line.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def load_run(path: Path | str, metrics: MetricsLog | None = None) -> Run:
    """Load the run directory `path`; given `metrics` of an earlier call, only what was appended is read.

    Raises `UserError` when it is no directory or holds none of a run's files.
    """
    path = find_run_dir(path)
    notes: list[str] = []
    metrics = MetricsLog(path / "metrics.jsonl") if metrics is None else metrics
    metrics.poll()
    if not metrics.path.exists():
        notes.append("metrics.jsonl does not exist yet: nothing has been logged.")
    notes.extend(metrics.notes())
    return Run(
        path=path,
        metrics=metrics,
        events=list(_read_events(path / "events.jsonl", notes)),
        summary=None if (written := _read_object(path / "summary.json", notes)) is None else Summary.from_json(written),
        env=_read_object(path / "env.json", notes) or {},
        ds_config=_read_object(path / "ds_config.json", notes),
        config_text=_read_text(path / "config.yaml"),
        notes=notes,
    )


def find_run_dir(path: Path | str) -> Path:
    """`path` itself when it is a run directory; raises `UserError` otherwise."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such directory; name a run directory such as runs/NAME")
    if not any((path / name).exists() for name in RUN_FILES):
        raise UserError(f"{path}: not a run directory (it holds none of {', '.join(RUN_FILES)}); name a runs/NAME")
    return path


def _read_text(path: Path) -> str | None:
    return path.read_text("utf-8", "replace") if path.is_file() else None


def _read_object(path: Path, notes: list[str]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    value = parse_object(path.read_bytes())
    if value is None:
        notes.append(f"{path.name}: not a JSON object, skipped.")
    return value


def _read_events(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    num_bad = 0
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        event = parse_object(line) if line.strip() else {}
        num_bad += event is None
        if event:
            yield event
    if num_bad:
        notes.append(f"{path.name}: {num_bad} unreadable line(s) skipped.")
