"""Synthetic run directories: the files of the run-directory contract, written without the trainer."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.metrics import names

PHASES_MS = {
    names.DATA_WAIT: 3.0, names.H2D: 0.4, names.FORWARD: 92.0, names.BACKWARD: 181.0, names.OPTIMIZER: 24.0,
    names.CACHE_CLEAR: 0.0, names.CHECKPOINT: 4.1, names.EVAL: 7.0, names.LOGGING: 1.2, names.OTHER: 2.3,
}  # fmt: skip
HOSTILE = '<script src="http://evil.example/x.js">alert("1")</script>'
SUMMARY: dict[str, Any] = {
    "name": "minigpt_quickstart", "status": "finished", "steps": 600, "epochs": 1.84, "tokens": 2_457_600,
    "train_seconds": 191.2, "loss_first": 9.02, "loss_last": 3.41, "eval_loss_first": 6.6, "eval_loss_last": 3.61,
    "unigram_entropy_nats": 6.431, "tokens_per_second": 12_850.0, "mfu_pct": 41.3, "mfu_palm_pct": 43.0,
    "hfu_pct": 41.3, "peak": {"tflops": 1.62, "source": "measured bf16 matmul rate", "device": "AMD EPYC, 2 cores"},
    "phases_ms": PHASES_MS, "phases_pct": {k: 100 * v / sum(PHASES_MS.values()) for k, v in PHASES_MS.items()},
    "step_ms": sum(PHASES_MS.values()), "peak_memory_gib": 1.874, "parameters": 10_023_456,
    "trainable_parameters": 10_023_456, "attn_implementation": "sdpa",
    "sample": {"prompt": "def read(", "text": "self, n=-1):\n    \"\"\"Read at most n bytes.\n\n    "
               "The default is -1, which means read until EOF.\n    \"\"\"\n    return self._buffer.read(n)\n"},
    "report": "report.html",
}  # fmt: skip
CONFIG = """\
model:
  kind: minigpt  # configs/minigpt_quickstart.yaml:3
  path: null  # default
training:
  max_steps: 600  # command line
  learning_rate: 0.001  # configs/minigpt_quickstart.yaml:9
"""
ENV = {
    "python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0", "accelerate": "1.15.0", "deepspeed": "0.19.8",
    "platform": "Linux", "cpu": "AMD EPYC", "cpu_count": 2, "gpus": [], "git_commit": "abc1234",
    "command": "training/train.py --config minigpt_quickstart", "world_size": 2, "launcher": "deepspeed",
    "started": "2026-05-01T10:00:00Z",
}  # fmt: skip
EVENTS = [
    {"time": 1_777_600_000, "step": 0, "kind": "start", "message": "minigpt_quickstart, 2 ranks", "max_steps": 600},
    {"time": 1_777_600_060, "step": 200, "kind": "save", "message": "checkpoint-200 written in 0.8 s"},
    {"time": 1_777_600_100, "step": 333, "kind": "alert", "message": "gradient norm 14.2 is 8 times its median"},
    {"time": 1_777_600_190, "step": 600, "kind": "final", "message": "final/ reloads, logits equal"},
]


def make_records(num_steps: int = 600, every: int = 10, seed: int = 0) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl as a CPU run writes them: a falling loss, phases that sum to the step time."""
    rng = np.random.default_rng(seed)
    records, time_s = [], 0.0
    for step in range(every, num_steps + 1, every):
        loss = 3.2 + 5.8 * math.exp(-step / 70) + 0.9 * math.exp(-step / 400) + rng.normal(0, 0.06)
        phases = {phase: ms * rng.lognormal(0, 0.05) for phase, ms in PHASES_MS.items()}
        phases[names.CHECKPOINT] = 80.0 if step % 200 == 0 else 0.0
        phases[names.EVAL] = 70.0 if step % 100 == 0 else 0.0
        step_ms = sum(phases.values())
        time_s += step_ms * every / 1000
        rate = 4096 / (step_ms / 1000)
        record = {
            "step": step, "epoch": step / 326, "time_s": time_s, "tokens": step * 4096, names.TRAIN_LOSS: loss,
            names.TRAIN_GRAD_NORM: 2.5 * math.exp(-step / 200) + 0.6 + abs(rng.normal(0, 0.15)),
            names.TRAIN_LEARNING_RATE: 1e-3 * min(step / 60, 1) * (0.5 + 0.5 * math.cos(math.pi * step / num_steps)),
            names.PERF_STEP_MS: step_ms, names.PERF_TOKENS_PER_SECOND: rate, names.PERF_USEFUL_TOKENS_PCT: 99.6,
            names.PERF_MFU_PCT: rate / 311, names.PERF_MFU_PALM_PCT: rate / 299, names.PERF_HFU_PCT: rate / 311,
            names.PERF_MEMORY_ALLOCATED_GIB: 1.6 + 0.05 * rng.random(), names.PERF_MEMORY_PEAK_GIB: 1.87,
            **{names.phase_key(phase): ms for phase, ms in phases.items()},
        }  # fmt: skip
        if step % 100 == 0:
            record[names.EVAL_LOSS] = loss + 0.17
        records.append(record)
    return records


def to_lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


WriteRun = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """`write_run(records=…, summary=…, …)` -> a run directory; a file given as `None` is not written."""

    def write(
        records: list[dict[str, Any]] | None = None,
        summary: dict[str, Any] | None = None,
        events: list[dict[str, Any]] | None = None,
        env: dict[str, Any] | None = None,
        config: str | None = CONFIG,
        ds_config: dict[str, Any] | None = None,
        name: str = "run",
    ) -> Path:
        run_dir = tmp_path / name
        run_dir.mkdir()
        texts = {
            "config.yaml": config,
            "metrics.jsonl": None if records is None else to_lines(records),
            "events.jsonl": None if events is None else to_lines(events),
            "summary.json": None if summary is None else json.dumps(summary),
            "env.json": None if env is None else json.dumps(env),
            "ds_config.json": None if ds_config is None else json.dumps(ds_config),
        }
        for file, text in texts.items():
            if text is not None:
                (run_dir / file).write_text(text)
        return run_dir

    return write


@pytest.fixture
def full_run(write_run: WriteRun) -> Path:
    """A finished quickstart run with every file."""
    ds_config = {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}
    return write_run(make_records(), SUMMARY, EVENTS, ENV, ds_config=ds_config)
