"""Rows that were exported from Redline's store, and the clock of a stock Trainer. Imports nothing of Redline.

A folder holds `ids.npy` and `labels.npy` (all rows end to end) and `offsets.npy` (rows + 1,), for `train` and
`evaluation`. The files are memory-mapped.
"""

import argparse
import json
import re
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback


def build_parser() -> argparse.ArgumentParser:
    """What every script takes: the exported folder, the result to write, arguments of its Trainer, untimed steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--settings", type=json.loads, required=True)
    parser.add_argument("--warmup", type=int, required=True)
    return parser


class ExportedRows(Dataset):
    """Row i as `input_ids` and `labels`, both of shape (tokens,)."""

    def __init__(self, folder: Path):
        self.ids, self.labels = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ids", "labels"))
        self.offsets = np.load(folder / "offsets.npy")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        span = slice(self.offsets[index], self.offsets[index + 1])
        parts = {"input_ids": self.ids[span], "labels": self.labels[span]}
        return {name: torch.from_numpy(part.astype(np.int64)) for name, part in parts.items()}


class StepClock(TrainerCallback):
    """Times each step, and the loop from the end of step `warmup` to the end of the last one."""

    def __init__(self, warmup: int):
        self.warmup, self.begin, self.step_ms, self.ends = warmup, 0.0, [], []

    def on_step_begin(self, args, state, control, **kwargs):
        """Start of a step, after its batch was loaded."""
        self.begin = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        """End of a step."""
        self.ends.append(time.perf_counter())
        self.step_ms.append(1e3 * (self.ends[-1] - self.begin))

    def write(self, trainer, output: Path) -> None:
        """Write what was measured as JSON, on the main rank."""
        if not trainer.is_world_process_zero():
            return
        logs = trainer.state.log_history
        losses = [entry["loss"] for entry in logs if "loss" in entry]
        evaluations = [entry for entry in logs if "eval_loss" in entry]
        result = {
            "seconds": self.ends[-1] - self.ends[self.warmup - 1],
            "step_ms": self.step_ms[self.warmup :],
            "loss": losses[-1],
            "peak_bytes": read_peak_bytes(),
            "eval_seconds": evaluations[0]["eval_runtime"] if evaluations else None,
            "eval_loss": evaluations[0]["eval_loss"] if evaluations else None,
        }
        output.write_text(json.dumps(result))


def read_peak_bytes() -> int:
    """The kernel's high water mark of resident memory; 0 where there is no /proc."""
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except FileNotFoundError:
        return 0
    return 1024 * int(found[1]) if found else 0
