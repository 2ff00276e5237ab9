"""What a measurement was made on: machine, versions, commit. Imports no torch; costs two calls of git."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from training.launch import count_cores


def describe_machine(packages: Sequence[str]) -> dict[str, Any]:
    """Python, the named packages, operating system, processor, and the commit of this code."""
    return {
        "python": platform.python_version(),
        **{name: find_version(name) for name in packages},
        "platform": " ".join((platform.system(), platform.release(), platform.machine())),
        "cpu": find_cpu_name(),
        "cpu_count": count_cores(),
        "git_commit": find_commit(),
    }


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
