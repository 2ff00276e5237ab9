"""Commands that a reader of a report can paste as they stand."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LAUNCHERS = {
    "deepspeed": "deepspeed --num_gpus {ranks}",
    "accelerate": "accelerate launch --multi_gpu --num_processes {ranks}",
    "torchrun": "torchrun --nproc_per_node={ranks}",
}


def format_advise(run_dir: Path, env: Mapping[str, Any], levers: str) -> list[str]:
    """`training.benchmark advise` for this run, as the lines of one shell command. config.yaml is a recipe; env: what
    env.json holds, for the launcher of several ranks."""
    lines = [f"python -m training.benchmark advise --config {shlex.quote(str(run_dir / 'config.yaml'))}"]
    ranks = env.get("world_size")
    if isinstance(ranks, int) and ranks > 1:
        launcher = LAUNCHERS.get(str(env.get("launcher")), LAUNCHERS["torchrun"]).format(ranks=ranks)
        lines.append(f"--launcher {shlex.quote(launcher)}")
    return [*lines, f"--levers {levers}"]
