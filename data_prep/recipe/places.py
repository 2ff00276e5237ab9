"""Finds the directories of recipes and DeepSpeed JSONs: in a clone, or in `share/redline` of an installed Redline.

The directories `configs/` and `ds_configs/` in the working directory have priority.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

CLONE = Path(__file__).resolve().parents[2]


def find_shipped(folder: str) -> Path:
    """Return the directory `configs` or `ds_configs` that belongs to Redline."""
    if (CLONE / "pyproject.toml").is_file():
        return CLONE / folder
    try:
        files = distribution("redline").files or []
    except PackageNotFoundError:
        files = []
    found = (file for file in files if file.parent.name == folder and "redline" in file.parts)
    first = next(found, None)
    return CLONE / folder if first is None else Path(str(first.locate())).resolve().parent


def list_places(folder: str) -> list[Path]:
    """List the directories that are searched for a bare name, in order of priority."""
    shipped, own = find_shipped(folder), Path.cwd() / folder
    return [shipped] if own == shipped or not own.is_dir() else [own, shipped]
