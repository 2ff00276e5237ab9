"""Writes files completely or not at all: under a temporary name, which is then renamed."""

import os
import uuid
from collections.abc import Iterable
from pathlib import Path

TEMPORARY_PATTERN = ".*.tmp"
"""Matches files that are being written, or that killed processes have left."""


def write_atomically(path: Path, content: bytes | Iterable[bytes], *, durable: bool = True) -> Path:
    """Write `path` so that it has its old or its new content, never a part; return `path`.

    durable: also flush the file to disk, so that this is true after a power failure.
    Raises OSError, and what `content` raises. No temporary file is then left.
    """
    temporary = name_temporary(path)
    try:
        with open(temporary, "wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)
    return path


def name_temporary(path: Path) -> Path:
    """Return a unique temporary name in the directory of `path`."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def sync(path: Path) -> None:
    """Flush a file, or the names in a directory, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
