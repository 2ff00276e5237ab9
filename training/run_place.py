"""Whether a run may be written where it is asked to be, told before torch loads; nothing is left there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from data_prep.errors import UserError

_KEY = "training.output_dir"
_PROBE_BYTES = 1 << 20  # less fits into what a full disk keeps back
# One of these makes a directory that of a run; it is then moved aside or gone on with.
_OF_A_RUN = ("config.yaml", "env.json", "metrics.jsonl", "events.jsonl", "summary.json", "final", "checkpoint-*")


def check_place(path: Path, needed: Iterable[Path] = ()) -> None:
    """Raises UserError for a place that cannot hold a run, or whose content would be moved aside without being one.

    needed: files and directories that the run reads or keeps, none of which may lie in it.
    """
    for part in (path, *path.parents):
        if os.path.isfile(part):
            raise UserError(f"{_KEY}: {path}: {part} is a file: name a directory")
    resolved = path.resolve()
    for kept in (Path.cwd(), Path.home(), *needed):
        if kept.resolve().is_relative_to(resolved):
            raise UserError(
                f"{_KEY}: {path} holds {kept}, which would be moved aside with it: name a directory of its own"
            )
    _check_name(path)
    _check_content(path)
    _check_writable(path)


def _check_name(path: Path) -> None:
    try:
        os.lstat(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"{_KEY}: {str(path)[:80]}…: {error.strerror}") from None


def _check_content(path: Path) -> None:
    try:
        entries = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{_KEY}: {path} cannot be read: {error.strerror}") from None
    if entries and not any(next(path.glob(pattern), None) for pattern in _OF_A_RUN):
        shown = ", ".join(entries[:3]) + ", …" * (len(entries) > 3)
        raise UserError(f"{_KEY}: {path} holds what is no run ({shown}): name a new directory")


def _check_writable(path: Path) -> None:
    """Rights and space are not believed but tried: a file is written in the nearest directory that is there."""
    there = next(part for part in (path, *path.resolve().parents) if part.is_dir())
    try:
        with tempfile.NamedTemporaryFile(prefix=".redline-", dir=there) as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise UserError(f"{_KEY}: {path} cannot be written: {there}: {error.strerror or error}") from None
