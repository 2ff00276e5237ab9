"""A manifest makes a checkpoint whole: without one, or with a file that differs from it, it is never resumed from.

`manifest.json` is written last, after every rank has closed its files. It holds the size and the xxh3-128 hash of each
file (about 10 GB/s, so the cost is that of reading the checkpoint once more from the page cache), the step, the world
size, the ZeRO stage, the samples consumed, fingerprints of data and configuration, and the versions that wrote it. Its
last entry is a digest of all before it, and its text is canonical, so that one flipped bit of it is found, too. All is
checked before anything unpickles a byte of the checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from data_prep.atomic_files import TEMPORARY_PATTERN, sync
from data_prep.errors import UserError
from training.checkpoints.finite_weights import find_bad_weight
from training.run_dir import write_text_atomic

logger = logging.getLogger("redline.checkpoints")

MANIFEST = "manifest.json"
FORMAT = 2  # 1, of older Redlines: step, world_size, files and settings, without a digest
# optimizer.pt, optimizer_0/ of FSDP, *_optim_states.pt of ZeRO, mp_rank_00_model_states.pt of DeepSpeed without ZeRO
OPTIMIZER_STATE = re.compile(r"optim|mp_rank_")
PICKLES = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt"}
_CHUNK = 8 << 20

FileEntry = dict[str, str | int]
"""`bytes` and `xxh3_128` of a file."""


class BrokenCheckpointError(UserError):
    """The files of a checkpoint are not those that were written."""


@dataclass(frozen=True)
class CheckpointManifest:
    """What a checkpoint said of itself when it was complete.

    settings: what it was trained with, dotted key -> value; None where an older Redline wrote it. zero_stage: 0 without
    DeepSpeed. samples: rows trained on, over all ranks; None where they are not counted (a stream). fingerprints: of
    `data` (what the order of the rows is a function of) and of `config` (`settings`).
    """

    step: int
    world_size: int
    files: dict[str, FileEntry]
    settings: dict[str, Any] | None = None
    format: int = 1
    zero_stage: int = 0
    samples: int | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """Of all files but the manifest."""
        return sum(int(entry["bytes"]) for entry in self.files.values())


def write_manifest(checkpoint: Path, hashed: Mapping[str, FileEntry] | None = None, **facts: Any) -> None:
    """Flush and hash every file below `checkpoint`, flush its directories, and write `manifest.json` as the last file.

    hashed: entries of files that are flushed and hashed already, by name; of files that are not here they are left out.
    facts: fields of `CheckpointManifest`.
    """
    known = hashed or {}
    files = {name: known[name] if name in known else hash_file(checkpoint / name) for name in list_files(checkpoint)}
    for directory in {checkpoint, *((checkpoint / name).parent for name in files)}:
        sync(directory)
    write_text_atomic(checkpoint / MANIFEST, _to_text(asdict(CheckpointManifest(files=files, format=FORMAT, **facts))))


def read_manifest(checkpoint: Path) -> CheckpointManifest:
    """Raises BrokenCheckpointError when there is none, or it is not as it was written."""
    path = checkpoint / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text)
        digest = values.pop("digest", None)
        manifest = CheckpointManifest(**values)
    except (FileNotFoundError, NotADirectoryError):
        raise BrokenCheckpointError(
            f"{checkpoint}: no {MANIFEST}: the save was interrupted, or it is no checkpoint"
        ) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise BrokenCheckpointError(f"{path}: cannot be read ({error})") from None
    is_older = digest is None and manifest.format == 1
    if not is_older and text != _to_text(values):
        raise BrokenCheckpointError(f"{path}: content differs from its own digest (damaged or edited)")
    return manifest


def verify_checkpoint(checkpoint: Path) -> CheckpointManifest:
    """Check every file against the manifest.

    Raises:
        BrokenCheckpointError: names the first file that is missing, cut short or changed.
        UserError: names a pickle that the manifest does not list; loading might run what is in it.
    """
    manifest = read_manifest(checkpoint)
    for name, expected in manifest.files.items():
        path = checkpoint / name
        if not path.is_file():
            raise BrokenCheckpointError(f"{path}: missing, though the manifest lists it")
        if path.stat().st_size != expected["bytes"]:
            size = path.stat().st_size
            raise BrokenCheckpointError(f"{path}: {size} bytes, the manifest says {expected['bytes']}")
        if hash_file(path, flush=False) != expected:
            raise BrokenCheckpointError(f"{path}: content differs from the manifest's hash (damaged or edited)")
    for name in list_files(checkpoint):
        if name not in manifest.files and Path(name).suffix in PICKLES:
            raise UserError(f"{checkpoint / name}: not of this checkpoint (its manifest does not list it): move it out")
    if manifest.format == 1:
        logger.info("%s: an older Redline wrote it: its manifest has no digest of itself", checkpoint.name)
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


def is_whole(checkpoint: Path) -> bool:
    """Whether the manifest is as written and every file has its size. Reads no other file."""
    try:
        manifest = read_manifest(checkpoint)
        return all((checkpoint / name).stat().st_size == entry["bytes"] for name, entry in manifest.files.items())
    except (UserError, OSError):
        return False


def find_checkpoints(run_dir: Path) -> list[Path]:
    """`checkpoint-N` directories of a run, highest step first, whole or not."""
    numbered = [
        (int(match.group(1)), path)
        for path in run_dir.glob("checkpoint-*")
        if path.is_dir() and (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    ]
    return [path for _, path in sorted(numbered, reverse=True)]


def find_last_finite(run_dir: Path) -> Path | None:
    """The complete checkpoint with the highest step whose weights are finite. Reads weights until it finds one."""
    whole = (path for path in find_checkpoints(run_dir) if (path / MANIFEST).exists())
    return next((path for path in whole if find_bad_weight(path) is None), None)


def list_files(checkpoint: Path) -> Iterator[str]:
    """Names of the files below a checkpoint but its manifest, sorted."""
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != MANIFEST and not path.match(TEMPORARY_PATTERN):
            yield path.relative_to(checkpoint).as_posix()


def hash_file(path: Path, *, flush: bool = True) -> FileEntry:
    """Size and hash of a file. flush: to disk, first."""
    digest, size = xxhash.xxh3_128(), 0
    with path.open("rb") as file:
        if flush:
            os.fsync(file.fileno())
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "xxh3_128": digest.hexdigest()}


def fingerprint(value: Any) -> str:
    """xxh3-128 of a JSON value."""
    return xxhash.xxh3_128(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _to_text(values: dict[str, Any]) -> str:
    """The canonical text of a manifest: these entries, then the digest of their own text."""
    text = json.dumps(values, indent=1)
    return json.dumps({**values, "digest": xxhash.xxh3_128(text.encode()).hexdigest()}, indent=1) + "\n"
