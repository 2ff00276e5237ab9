"""Where recipes and DeepSpeed JSONs are: beside the code in a clone, in `share/redline` of an installed Redline.

A file of the user's own `configs/` or `ds_configs/` in the working directory is found first.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

CLONE = Path(__file__).resolve().parents[2]


def find_shipped(folder: str) -> Path:
    """`configs` or `ds_configs` as they come with Redline."""
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
    """Directories in which a bare name is looked up, the first that has it wins."""
    shipped, own = find_shipped(folder), Path.cwd() / folder
    return [shipped] if own == shipped or not own.is_dir() else [own, shipped]
