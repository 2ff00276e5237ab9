"""Short runs of a configuration, with one lever turned or none, each in a process of its own.

A run takes a few optimizer steps as the configuration has them, with the metrics of every step, and ends there. It is
kept in its directory, with its log, so that any figure can be looked up.
"""

from __future__ import annotations

import copy
import json
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from training.benchmark.advise.levers import DEEPSPEED, Baseline, Variant
from training.benchmark.launching import run_logged
from training.config import LoadedConfig, load_config
from training.reporting.run_reader import Run, load_run

logger = logging.getLogger("redline.benchmark")

TRIAL = Path(__file__).with_name("trial.py")
FIRST_LIMIT_SECONDS = 3600  # of the first run, which builds the token store
LIMIT_SECONDS, LIMIT_RATIO = 600, 10  # of the others: at least the one, else the other times the first run

# What a run of a few steps leaves out, whatever the configuration says.
SHORT: dict[str, Any] = {
    "training.eval_strategy": "no", "training.save_strategy": "no", "training.load_best_model_at_end": False,
    "training.report_to": "none",
    "perf.enabled": True, "perf.log_every": 1, "perf.flops_profile_every": 0, "perf.profile_steps": None,
    "monitor.train_every": 1, "monitor.plot_every": 0,
}  # fmt: skip


@dataclass
class Runner:
    """arguments: of train.py, the user's; work_dir: an empty place for all runs; launch: (command, log, limit)."""

    arguments: Sequence[str]
    launcher: Sequence[str]
    steps: int
    work_dir: Path
    launch: Callable[[Sequence[str], Path, float], None] = run_logged
    limit_seconds: float = FIRST_LIMIT_SECONDS
    world_size: int | None = None  # known after the first run

    def build_arguments(self, variant: Variant | None, path: Path) -> list[str]:
        """Arguments of one run. Raises UserError when they contradict each other."""
        changes = {**SHORT, "training.max_steps": self.steps, "training.output_dir": str(path)}
        arguments = [*self.arguments, "--resume", "never", *as_arguments(changes)]
        if variant is None:
            return arguments
        if variant.json:
            arguments += ["--deepspeed", str(self._write_json(variant))]
        arguments += as_arguments(variant.recipe)
        load_config(arguments, self.world_size)
        return arguments

    def _write_json(self, variant: Variant) -> Path:
        path = self.work_dir / "ds_configs" / f"{name_files(variant)}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(change_json(load_config(self.arguments), variant.json), indent=2) + "\n")
        return path

    def run(self, variant: Variant | None, number: int) -> Run:
        """Round `number` of a variant, or of the configuration as it is. Raises UserError when it fails."""
        path = self.work_dir / f"{name_files(variant)}-{number}"
        arguments = self.build_arguments(variant, path)
        logger.debug("%s", shlex.join(arguments))
        self.launch([*self.launcher, str(TRIAL), *arguments], path.with_name(f"{path.name}.log"), self.limit_seconds)
        return load_run(path)


def name_files(variant: Variant | None) -> str:
    """Name of a variant's run directories."""
    if variant is None:
        return "as-it-is"
    return "-".join("".join(c if c.isalnum() else " " for c in f"{variant.lever} {variant.label}").split())[:80]


def change_json(loaded: LoadedConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration's DeepSpeed JSON with other values."""
    if loaded.deepspeed_path is None:
        raise UserError("there is no DeepSpeed JSON to change")
    values = json.loads(loaded.deepspeed_path.read_text(encoding="utf-8"))
    changed = copy.deepcopy(values)
    for dotted, value in changes.items():
        *above, last = dotted.split(".")
        block = changed
        for key in above:
            block = block.setdefault(key, {})
        block[last] = value
    return changed


def as_arguments(changes: Mapping[str, Any]) -> list[str]:
    """Changes of keys as arguments of `train.py`."""
    arguments: list[str] = []
    for key, value in changes.items():
        text = value if isinstance(value, str) else json.dumps(value)
        arguments += [key, text] if key == DEEPSPEED else [f"{key}={text}"]
    return arguments


def describe_baseline(arguments: Sequence[str], run: Run) -> Baseline:
    """What the first run says of ranks, device, threads and memory allocator."""
    size = int(run.env.get("world_size") or 1)
    loaded = load_config(arguments, world_size=size)
    on_gpu = bool(run.env.get("gpus")) and not loaded.config.argument("use_cpu")
    allocator = run.env.get("allocator") or {}
    return Baseline(loaded, size, "cuda" if on_gpu else "cpu", int(run.env.get("num_threads") or 1), allocator)
