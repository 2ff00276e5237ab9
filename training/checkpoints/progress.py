"""What a run knows of itself beside the Trainer's state, kept in each checkpoint as `progress.json`.

The Trainer forgets the losses between the last logged step and the save, so a resumed run would log another mean than
the straight one. Here each rank's running sum is kept exactly (a float32 is a JSON number without loss), together with
the tokens trained on and the seconds spent, so both continue where they were, and where the data stands.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from training.run_dir import keep_finite, write_text_atomic

PROGRESS = "progress.json"


@dataclass
class Progress:
    """`loss_sums[r]`: rank r's losses since `last_logged_step`; `tokens`: over all ranks, without padding.

    `text_bytes`: those that the tokens with a loss spell, over all ranks; `unlogged`: such tokens and their bytes since
    the last logged step. A sum that is not finite, as an older Redline may have left one, is null and stands for none.
    `position` is where the data stands: for a store the number of rows done, over all ranks and epochs. It means
    something in one `order` only (`training/data/resume_check.py`).
    """

    loss_sums: list[float | None] = field(default_factory=list)
    last_logged_step: int = 0
    tokens: int = 0
    text_bytes: int = 0
    unlogged: list[int] = field(default_factory=lambda: [0, 0])
    seconds: float = 0.0
    position: Any = None
    order: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    """State of each callback that has one, by class name (`callbacks/contract.py`)."""

    def write(self, checkpoint: Path) -> None:
        """Write the file into a checkpoint, atomically."""
        write_text_atomic(checkpoint / PROGRESS, json.dumps(keep_finite(asdict(self)), allow_nan=False) + "\n")

    @classmethod
    def read(cls, checkpoint: Path) -> Progress:
        """Raises UserError when the file is missing or damaged."""
        try:
            progress = cls(**json.loads((checkpoint / PROGRESS).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{checkpoint / PROGRESS}: cannot be read ({error}); not a Redline checkpoint?") from None
        if progress.position is None or not isinstance(progress.order, dict):
            raise UserError(f"{checkpoint / PROGRESS}: does not say where the data stood; of an older Redline?")
        return progress
