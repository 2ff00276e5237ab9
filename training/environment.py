"""What a measurement was made on: machine, versions, commit. Costs two calls of git."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from training.allocator import describe_allocator
from training.launch import World, count_cores


def describe_machine(packages: Sequence[str]) -> dict[str, Any]:
    """Python, the named packages, operating system, processor, and the commit of this code."""
    return {
        "redline": find_redline_version(),
        "python": platform.python_version(),
        **{name: find_version(name) for name in packages},
        "platform": " ".join((platform.system(), platform.release(), platform.machine())),
        "cpu": find_cpu_name(),
        "cpu_count": count_cores(),
        "git_commit": find_commit(),
    }


def describe_environment(world: World) -> dict[str, Any]:
    """Versions, machine, memory allocator and command of this session."""
    import torch  # not for readers of a run

    packages = ("torch", "transformers", "accelerate", "deepspeed", "datasets", "peft", "bitsandbytes", "flash-attn")
    return {
        **describe_machine(packages),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "command": " ".join(sys.argv),
        "launcher": world.launcher,
        "world_size": world.size,
        "num_threads": torch.get_num_threads(),
        "allocator": describe_allocator(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def find_redline_version() -> str | None:
    """Of a clone as its pyproject.toml says, else of the installed package."""
    try:
        text = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8")
        return str(tomllib.loads(text)["project"]["version"])
    except (OSError, ValueError, KeyError):
        return find_version("redline")


def find_version(package: str) -> str | None:
    """Version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def find_cpu_name() -> str | None:
    """Model name of the first processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)


def find_commit() -> str | None:
    """Commit of this code, with `+changes` when the tree differs from it."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        commit = git("rev-parse", "HEAD").strip()
        return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None
