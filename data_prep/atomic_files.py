"""Files that are whole or absent: written beside their name, then renamed."""

import os
import uuid
from collections.abc import Iterable
from pathlib import Path

TEMPORARY_PATTERN = ".*.tmp"
"""Files that are being written, and what killed processes left of them."""


def write_atomically(path: Path, content: bytes | Iterable[bytes], *, durable: bool = True) -> Path:
    """Write `path` so that it is the old content or the new, never a part; returns `path`.

    durable: flush it to disk, so that this holds after a power cut, too. Raises OSError; then, and when `content`
    raises, nothing of the attempt is left behind.
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
    """A name beside `path`, of its own in every process of every machine that writes there."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def sync(path: Path) -> None:
    """Flush a file, or the names in a directory, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
