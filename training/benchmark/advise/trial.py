"""`train.py` that ends after its last step: nothing is saved, checked or reported. Started by `advise` as a launcher
starts `train.py`, with the same arguments."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: its folder is on the path, the project's root is not
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from training.train import main


def leave(*_: Any) -> None:
    """Nothing comes after the last step."""


if __name__ == "__main__":
    sys.exit(main(finish=leave))
