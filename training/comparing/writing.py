"""A comparison as files: PAGE.md, PAGE.json and PAGE.png, each written beside its place and renamed."""

from __future__ import annotations

import json
from pathlib import Path

from data_prep.atomic_files import write_atomically
from training.comparing.comparison import Comparison
from training.comparing.page import format_page
from training.comparing.picture import draw_comparison


def write_comparison(comparison: Comparison, output: Path, machine: str = "") -> None:
    """Write page, numbers and picture; `output` ends in .md, its folder is made. machine: a paragraph for the end."""
    output.parent.mkdir(parents=True, exist_ok=True)
    picture = output.with_suffix(".png")
    write_atomically(picture, draw_comparison(comparison))
    write_atomically(output.with_suffix(".json"), (json.dumps(comparison.as_json(), indent=1) + "\n").encode())
    write_atomically(output, "\n".join([format_page(comparison, picture.name), machine]).encode())
