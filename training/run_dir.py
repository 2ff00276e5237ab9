"""The run directory: the only interface between training and whoever reads a run.

    config.yaml   ds_config.json   env.json   metrics.jsonl   events.jsonl   summary.json
    report.html   plots/*.png      checkpoint-N/              final/

Whole files are written beside their place, flushed to disk and renamed, so a reader never sees half of one. The two
`.jsonl` files grow by whole lines; a killed run may leave one torn last line, which a resumed run cuts off together
with the lines past its checkpoint, so that steps increase through the file.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.atomic_files import write_atomically


class RunDir:
    """Paths and writers of one run. Only rank 0 writes."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.resolve().name

    @property
    def config(self) -> Path:
        """Every value with its origin."""
        return self.path / "config.yaml"

    @property
    def ds_config(self) -> Path:
        """What DeepSpeed received."""
        return self.path / "ds_config.json"

    @property
    def env(self) -> Path:
        """Versions, machine, command."""
        return self.path / "env.json"

    @property
    def metrics(self) -> Path:
        """One record per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """Starts, saves, evaluations, errors."""
        return self.path / "events.jsonl"

    @property
    def summary(self) -> Path:
        """The facts of the run."""
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    @property
    def plots(self) -> Path:
        """Pictures of the page."""
        return self.path / "plots"

    @property
    def final(self) -> Path:
        """The trained model."""
        return self.path / "final"

    def is_finished(self) -> bool:
        """Whether a session came to its end here: `final/` written and checked, and said so last."""
        try:
            return json.loads(self.summary.read_text())["status"] == "finished" and self.final.is_dir()
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def write_json(self, target: Path, value: Any) -> None:
        """Atomically write `value`; NaN and infinities become null."""
        write_text_atomic(target, json.dumps(keep_finite(value), indent=2, default=str, allow_nan=False) + "\n")

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """One logged step, one line."""
        _append_line(self.metrics, record)

    def append_event(self, kind: str, step: int, message: str, **details: Any) -> None:
        """Something that happened: `start`, `resume`, `save`, `eval`, `alert`, `final`, …"""
        _append_line(self.events, {"time": time.time(), "step": step, "kind": kind, "message": message, **details})

    def cut_metrics_after(self, step: int) -> int:
        """Drop the metrics past `step` and a torn last line; how many lines went. `step=0` empties the file."""
        if not self.metrics.exists():
            return 0
        kept, dropped = [], 0
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                keep = json.loads(line)["step"] <= step and step > 0
            except (ValueError, KeyError, TypeError):
                keep = False
            kept.append(line) if keep else None
            dropped += not keep
        write_text_atomic(self.metrics, "".join(line + "\n" for line in kept))
        return dropped


def write_text_atomic(target: Path, text: str) -> None:
    """Write UTF-8 text as `write_atomically` does; makes the folder first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, text.encode())


def _append_line(target: Path, record: Mapping[str, Any]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("a", encoding="utf-8") as file:
        file.write(json.dumps(keep_finite(record), default=str, allow_nan=False) + "\n")


def keep_finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): keep_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [keep_finite(item) for item in value]
    return value
