"""Whether the weights of a checkpoint are finite.

A checkpoint is never written with weights that are not; an older Redline wrote such. What cannot be told from its
safetensors (weights that ZeRO-3 did not gather, a file that is none) is taken to be as it should be.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open


def find_bad_weight(checkpoint: Path) -> str | None:
    """Name of the first tensor in its safetensors that holds a NaN or an infinity."""
    for path in sorted(checkpoint.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  no mapping
                    tensor = file.get_tensor(name)
                    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                        return name
        except SafetensorError:  # whether a file is what was written, its manifest says
            continue
    return None
