"""A manifest makes a checkpoint whole: without one, or with a file that differs from it, it is never resumed from.

`manifest.json` is written last, after every rank has closed its files, and atomically. It holds the size and the
xxh3-128 hash of each file (about 10 GB/s, so the cost is that of reading the checkpoint once more from the page cache),
the step and the world size. It is checked before anything unpickles a byte of the checkpoint.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from data_prep.atomic_files import TEMPORARY_PATTERN
from data_prep.errors import UserError
from training.checkpoints.finite_weights import find_bad_weight
from training.run_dir import write_text_atomic

logger = logging.getLogger("redline.checkpoints")

MANIFEST = "manifest.json"
# optimizer.pt, optimizer_0/ of FSDP, *_optim_states.pt of ZeRO, mp_rank_00_model_states.pt of DeepSpeed without ZeRO
OPTIMIZER_STATE = re.compile(r"optim|mp_rank_")
_CHUNK = 8 << 20


@dataclass(frozen=True)
class CheckpointManifest:
    """What a checkpoint said of itself when it was complete. settings: what it was trained with, dotted key -> value;
    None where an older Redline wrote it."""

    step: int
    world_size: int
    files: dict[str, dict[str, str | int]]
    settings: dict[str, Any] | None = None


def write_manifest(checkpoint: Path, *, step: int, world_size: int, settings: Mapping[str, Any] | None = None) -> None:
    """Hash every file below `checkpoint` and write `manifest.json` as the last one."""
    files = {
        str(path.relative_to(checkpoint)): {"bytes": path.stat().st_size, "xxh3_128": _hash_file(path)}
        for path in _files_below(checkpoint)
    }
    text = json.dumps({"step": step, "world_size": world_size, "files": files, "settings": settings}, indent=1)
    write_text_atomic(checkpoint / MANIFEST, text + "\n")


def read_manifest(checkpoint: Path) -> CheckpointManifest:
    """Raises UserError when there is none or it cannot be read: the save was interrupted."""
    try:
        return CheckpointManifest(**json.loads((checkpoint / MANIFEST).read_text()))
    except FileNotFoundError:
        raise UserError(f"{checkpoint}: no {MANIFEST}: the save was interrupted, or it is no checkpoint") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{checkpoint / MANIFEST}: cannot be read ({error})") from None


def verify_checkpoint(checkpoint: Path) -> CheckpointManifest:
    """Check every file against the manifest.

    Raises:
        UserError: names the first file that is missing, cut short or changed.
    """
    manifest = read_manifest(checkpoint)
    for name, expected in manifest.files.items():
        path = checkpoint / name
        if not path.is_file():
            raise UserError(f"{path}: missing, though the manifest lists it")
        if path.stat().st_size != expected["bytes"]:
            raise UserError(f"{path}: {path.stat().st_size} bytes, the manifest says {expected['bytes']}")
        if _hash_file(path) != expected["xxh3_128"]:
            raise UserError(f"{path}: content differs from the manifest's hash (damaged or edited)")
    return manifest


def check_resumable(checkpoint: Path, *, verify: bool = True) -> CheckpointManifest:
    """Check that a checkpoint is whole (`verify`: every byte of it, and that its weights are finite) and holds the
    optimizer's state.

    The Trainer itself would start Adam and the learning-rate schedule from scratch without a word. Raises UserError.
    """
    manifest = verify_checkpoint(checkpoint) if verify else read_manifest(checkpoint)
    if verify and (bad := find_bad_weight(checkpoint)):
        raise UserError(f"{checkpoint}: its weights are not finite, first {bad}: resume from an earlier one")
    if not any(OPTIMIZER_STATE.search(name) for name in manifest.files):
        raise UserError(
            f"{checkpoint}: holds weights only, no optimizer state (training.save_only_model): it starts a new run as "
            f"model.path={checkpoint}, but cannot be resumed from"
        )
    return manifest


def find_checkpoints(run_dir: Path) -> list[Path]:
    """`checkpoint-N` directories of a run, highest step first, whole or not."""
    numbered = [
        (int(match.group(1)), path)
        for path in run_dir.glob("checkpoint-*")
        if path.is_dir() and (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    ]
    return [path for _, path in sorted(numbered, reverse=True)]


def find_resumable(run_dir: Path, *, verify: bool = True) -> Path | None:
    """The latest checkpoint that can be resumed from; each one that is skipped is logged with its reason."""
    for checkpoint in find_checkpoints(run_dir):
        try:
            check_resumable(checkpoint, verify=verify)
            return checkpoint
        except UserError as reason:
            logger.warning("not resuming from %s: %s", checkpoint.name, reason)
    return None


def find_last_finite(run_dir: Path) -> Path | None:
    """The complete checkpoint with the highest step whose weights are finite. Reads weights until it finds one."""
    whole = (path for path in find_checkpoints(run_dir) if (path / MANIFEST).exists())
    return next((path for path in whole if find_bad_weight(path) is None), None)


def _files_below(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != MANIFEST and not path.match(TEMPORARY_PATTERN):
            yield path


def _hash_file(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
