"""Which checkpoint a run is resumed from: the newest good one. A broken one is kept in `quarantine/`, with an event."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import torch.distributed as dist

from data_prep.atomic_files import sync
from data_prep.errors import UserError
from training.checkpoints.manifest import (
    BrokenCheckpointError,
    check_resumable,
    find_checkpoints,
    read_manifest,
)
from training.launch import World
from training.run_dir import RunDir

logger = logging.getLogger("redline.checkpoints")

QUARANTINE = "quarantine"


def find_resumable(run_dir: Path, *, verify: bool = True) -> Path | None:
    """The latest checkpoint that can be resumed from. Each one that is skipped is logged with its reason, and a broken
    one is moved to `quarantine/`, where nothing takes it for a checkpoint."""
    for checkpoint in find_checkpoints(run_dir):
        try:
            check_resumable(checkpoint, verify=verify)
            return checkpoint
        except BrokenCheckpointError as reason:
            put_in_quarantine(run_dir, checkpoint, str(reason))
        except UserError as reason:
            logger.warning("not resuming from %s: %s", checkpoint.name, reason)
    return None


def put_in_quarantine(run_dir: Path, checkpoint: Path, reason: str) -> Path:
    """Move a broken checkpoint to `quarantine/NAME`, or `NAME-1`, …; where it is now. Writes an event."""
    folder = run_dir / QUARANTINE
    folder.mkdir(exist_ok=True)
    names = itertools.chain([checkpoint.name], (f"{checkpoint.name}-{number}" for number in itertools.count(1)))
    place = next(free for name in names if not (free := folder / name).exists())
    checkpoint.rename(place)
    for directory in (folder, run_dir):
        sync(directory)
    where = f"{QUARANTINE}/{place.name}"
    logger.warning("not resuming from %s: %s; it is kept as %s", checkpoint.name, reason, where)
    step = int(checkpoint.name.rpartition("-")[2])
    RunDir(run_dir).append_event("quarantine", step, f"{checkpoint.name} is broken: {reason}", kept_as=where)
    return place


def check_seen_by_all(checkpoint: Path | None, world: World) -> None:
    """Collective; None: there is none. Raises UserError on all ranks when a rank sees another than rank 0."""
    if checkpoint is None or world.size == 1:
        return
    try:
        manifest = read_manifest(checkpoint)
        own: object = (manifest.step, manifest.world_size, manifest.samples, manifest.fingerprints)
    except (UserError, OSError) as error:
        own = str(error)
    seen: list[object] = [None] * world.size
    dist.all_gather_object(seen, own)
    for rank, facts in enumerate(seen):
        if facts != seen[0]:
            what = facts if isinstance(facts, str) else f"step {facts[0]}"  # pyright: ignore[reportIndexIssue]
            raise UserError(
                f"{checkpoint}: rank {rank} does not see the checkpoint that rank 0 resumes from ({what}): "
                "put training.output_dir on a file system that all nodes share"
            )
