"""Caches the hashes of source files, so that a start with a complete store reads no file.

Chunks and hashes of a source's files are in `store_dir/content_hashes/`, one JSON file per source. The key of a file is
(path, inode, size, mtime_ns, ctime_ns) from before it was read. ctime changes at every write and cannot be set, so a
changed byte is never missed; `touch` costs one more read, which gives the same hash. A file that changed less than the
clock resolution before it was read is not cached, because a second write in the same tick would go unnoticed. Later
readers compare the file with the same stamp (`files.refuse_changes`), so no result is saved for changed content.
"""

import logging
import os
import time
from pathlib import Path
from typing import Any

import orjson

from data_prep.errors import UserError
from data_prep.progress import track
from data_prep.read import chunks
from data_prep.read.chunks import Chunk, Content, cut_file
from data_prep.read.files import read_stamp, show_path
from data_prep.read.fingerprint import name_of
from data_prep.read.sources import Input, SourceFile
from data_prep.store.writing import WriteError, explain_write_errors, write_atomically

logger = logging.getLogger("redline.data")

CHUNKS_FORMAT = 2
FOLDER = "content_hashes"
CLOCK_GRAIN_NS = 2 * 10**9  # clock resolution of the coarsest file systems

# Format and stamp of a file, its hash, and its chunks (empty: the whole file is one chunk).
Entry = list[Any]


def find_contents(item: Input, store_dir: Path) -> tuple[Content, ...]:
    """Find the content of each file of a source, in order. Raises UserError when a file cannot be read."""
    sizes = [CHUNKS_FORMAT, chunks.MIN_BYTES, chunks.MAX_BYTES]
    sidecar = store_dir / FOLDER / f"{name_of([sizes, show_path(os.path.abspath(item.section.path))])}.json"
    known, now = _load(sidecar), time.time_ns()
    found: dict[str, Entry] = {}
    contents: list[Content] = []
    fresh = False
    try:
        for file in track(item.files, "reading the sources", sum(file.size for file in item.files), "B", _size_of):
            stamp = [file.format, *(file.stamp or read_stamp(file.path))]
            entry = known.get(show_path(file.path))
            if entry is None or entry[0] != stamp:
                content, fresh = cut_file(file), True
                entry = [stamp, content.hash, [] if content.chunks[0].end is None else content.chunks]
            else:
                content = _restore(entry, file.size)
            contents.append(content)
            if now - stamp[-1] > CLOCK_GRAIN_NS:
                found[show_path(file.path)] = entry
    except OSError as error:
        name = error.filename or item.section.path
        raise UserError(f"data.sources.{item.index}: {name} cannot be read ({error.strerror or error})") from None
    finally:
        if fresh:
            _save(sidecar, found)
    return tuple(contents)


def _size_of(file: SourceFile) -> int:
    return file.size


def _restore(entry: Entry, size: int) -> Content:
    _, found, pieces = entry
    return Content(found, tuple(Chunk(*piece) for piece in pieces) if pieces else (Chunk(0, None, 1, size, found),))


def _load(sidecar: Path) -> dict[str, Entry]:
    try:
        return orjson.loads(sidecar.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}


def _save(sidecar: Path, found: dict[str, Entry]) -> None:
    try:
        with explain_write_errors(sidecar.parent):
            sidecar.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(sidecar, orjson.dumps(found, default=list))
    except WriteError as error:
        logger.warning("content hashes: not saved, so files are read again next time (%s)", error)
