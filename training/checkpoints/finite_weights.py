"""Which checkpoint is the last whose weights are finite. Asked only when something went wrong.

A checkpoint is never written with weights that are not finite; an older Redline wrote such. What cannot be read here
(weights that ZeRO-3 did not gather) is taken to be as it should be.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from training.checkpoints.manifest import MANIFEST, find_checkpoints


def find_last_finite(run_dir: Path) -> Path | None:
    """The whole checkpoint with the highest step whose weights are finite. Reads weights until it finds one."""
    whole = (path for path in find_checkpoints(run_dir) if (path / MANIFEST).exists())
    return next((path for path in whole if find_bad_weight(path) is None), None)


def find_bad_weight(checkpoint: Path) -> str | None:
    """Name of the first tensor in its safetensors that holds a NaN or an infinity."""
    for path in sorted(checkpoint.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  no mapping
                    tensor = file.get_tensor(name)
                    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                        return name
        except (OSError, SafetensorError) as error:
            return f"{path.name} ({error})"
    return None
