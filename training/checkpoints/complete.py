"""Completes a checkpoint that the Trainer has written: the progress of the run, then the manifest, then it is whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from training.checkpoints.manifest import write_manifest
from training.checkpoints.progress import Progress


def complete_checkpoint(
    checkpoint: Path,
    progress: Progress,
    *,
    step: int,
    world_size: int,
    settings: Mapping[str, Any] | None,
    writes: bool,
) -> None:
    """Add `progress.json` and, once all ranks have closed their files, `manifest.json`. Collective.

    settings: what the run trains with, dotted key -> value. writes: whether this rank writes files for all.
    """
    if writes:
        progress.write(checkpoint)
    if dist.is_initialized():
        dist.barrier()
    if writes:
        write_manifest(checkpoint, step=step, world_size=world_size, settings=settings)
