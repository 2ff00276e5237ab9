"""What the page of every benchmark has: machine, versions, commit, command; and the JSON beside it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.environment import describe_machine
from training.run_dir import keep_finite, write_text_atomic

PACKAGES = ("torch", "transformers", "accelerate", "deepspeed")


def look_at_machine(command: str, packages: Sequence[str] = PACKAGES, **facts: Any) -> dict[str, Any]:
    """What a benchmark runs on. Call it first: the commit is that of the code that runs.

    command: as typed. facts: further keys, such as the device.
    """
    started = time.strftime("%Y-%m-%d %H:%M %Z")
    return {**describe_machine(packages), "packages": list(packages), "started": started, "command": command, **facts}


def format_machine(machine: Mapping[str, Any], where: str = "", remark: str = "") -> str:
    """Machine and versions in one paragraph, the command in another. where: a device, before the processor."""
    versions = ", ".join(f"{name} {machine[name]}" for name in machine["packages"] if machine[name])
    memory = f", {machine['memory_gb']:.0f} GB" if "memory_gb" in machine else ""
    return (
        f"{where}{machine['cpu_count']} cores of {machine['cpu']}{memory}; {machine['platform']}, "
        f"Python {machine['python']}, {versions}. Commit {machine['git_commit']}, {machine['started']}.{remark}\n\n"
        f"Command: `{machine['command']}`."
    )


def write_page(output: Path, page: str, content: Any) -> None:
    """Write the page (a .md) and its numbers as JSON beside it; NaN and infinities become null."""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(output.with_suffix(".json"), json.dumps(keep_finite(content), indent=1, default=str) + "\n")
    write_text_atomic(output, page)


def read_content(output: Path) -> Any:
    """The JSON beside a page."""
    return json.loads(output.with_suffix(".json").read_bytes())
