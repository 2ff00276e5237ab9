"""The result of one run, from what each side writes."""

from __future__ import annotations

import csv
import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from training.metrics import names

GIB = 2**30
NANOGPT_STEP = re.compile(r"^iter (\d+): loss (\S+), time (\S+)ms", re.MULTILINE)


@dataclass(frozen=True)
class Measurement:
    """Of one run. tokens_per_second: useful tokens of all ranks over the wall time of the loop, from the end of the
    warm-up to the end of the last step. loss: mean of the last steps. step_ms: median. Memory is rank 0's."""

    tokens_per_second: float
    step_ms: float
    loss: float
    peak_gib: float
    eval_seconds: float | None = None
    eval_loss: float | None = None


def read_redline(run: Path, warmup: int) -> Measurement:
    """From metrics.jsonl of a run directory. Raises UserError where the records do not fit the warm-up."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    steps = [one for one in records if names.PERF_STEP_MS in one]  # others are sums of an epoch, and the first loss
    first = next((one for one in steps if one["step"] == warmup), None)
    last = steps[-1] if steps else {}
    if first is None or last["step"] <= warmup:
        raise UserError(f"{run}/metrics.jsonl: no record at step {warmup}, or none after it")
    evaluations = [one for one in records if names.EVAL_LOSS in one]
    timed = [one[names.PERF_STEP_MS] for one in steps if one["step"] > warmup]
    # A record is the mean of the steps since the one before it. The time of an evaluation belongs to the step after it,
    # so that of the last one, after the last step, stands in none.
    pairs = zip(steps, steps[1:], strict=False)
    eval_ms = sum(one.get(names.phase_key(names.EVAL), 0.0) * (one["step"] - before["step"]) for before, one in pairs)
    return Measurement(
        tokens_per_second=(last["tokens"] - first["tokens"]) / (last["time_s"] - first["time_s"]),
        step_ms=statistics.median(timed),
        loss=last[names.TRAIN_LOSS],
        peak_gib=last[names.PERF_MEMORY_PEAK_GIB],
        eval_seconds=eval_ms / 1e3 if evaluations else None,
        eval_loss=evaluations[0][names.EVAL_LOSS] if evaluations else None,
    )


def read_script(result: Path, tokens: int) -> Measurement:
    """From the JSON of `scripts/`. tokens: useful ones of the timed steps, of all ranks."""
    values = json.loads(result.read_bytes())
    return Measurement(
        tokens_per_second=tokens / values["seconds"],
        step_ms=statistics.median(values["step_ms"]),
        loss=values["loss"],
        peak_gib=values["peak_bytes"] / GIB,
        eval_seconds=values["eval_seconds"],
        eval_loss=values["eval_loss"],
    )


def read_litgpt(metrics: Path, warmup: int, tokens: int, peak_bytes: int) -> Measurement:
    """From the CSV of Lightning's logger: a line a step, whose `time` is that of the loop. tokens: as `read_script`."""
    with metrics.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line.get("loss")]
    if len(lines) <= warmup:
        raise UserError(f"{metrics}: {len(lines)} steps, and the first {warmup} are not timed")
    seconds = float(lines[-1]["time"]) - float(lines[warmup - 1]["time"])
    steps = [1e3 * float(line["iter_time"]) for line in lines]
    return _join(steps, [float(line["loss"]) for line in lines], warmup, tokens / seconds, peak_bytes)


def read_nanogpt(log: Path, warmup: int, tokens: int, peak_bytes: int) -> Measurement:
    """From what nanoGPT prints: the time of a step is that since the step before. tokens: as `read_script`."""
    found = NANOGPT_STEP.findall(log.read_text(errors="replace"))
    if len(found) <= warmup:
        raise UserError(f"{log}: {len(found)} steps, and the first {warmup} are not timed")
    steps = [float(time_ms) for _, _, time_ms in found]
    rate = 1e3 * tokens / sum(steps[warmup:])
    return _join(steps, [float(loss) for _, loss, _ in found], warmup, rate, peak_bytes)


def _join(
    step_ms: Sequence[float], losses: Sequence[float], warmup: int, tokens_per_second: float, peak_bytes: int
) -> Measurement:
    """Of steps that were logged one by one; the loss is the mean of as many last steps as are warm-up."""
    loss = statistics.fmean(losses[-warmup:])
    return Measurement(tokens_per_second, statistics.median(step_ms[warmup:]), loss, peak_bytes / GIB)
