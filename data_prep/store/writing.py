"""Writes the files of a store completely or not at all.

Every file is written under a temporary name and renamed, so a file with a final name is complete. Shards and results of
parts are flushed to disk while others are written: a result after its shards, the manifest after everything. So after a
power failure, a manifest or a result never refers to missing shards. A full disk, a file over the size limit, and a
read-only file system raise a `WriteError` that names the directory and the free space. Incomplete files are then
removed; complete files stay.
"""

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from data_prep import atomic_files
from data_prep.atomic_files import TEMPORARY_PATTERN
from data_prep.errors import UserError
from data_prep.read.fingerprint import hash_file
from data_prep.store.store import SCHEMA, Shard, Split

logger = logging.getLogger("redline.data")

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class WriteError(UserError):
    """A directory cannot be written to. Its files with final names are complete."""


@contextmanager
def explain_write_errors(directory: Path) -> Iterator[None]:
    """Raises WriteError for an OSError while writing to `directory`."""
    try:
        yield
    except OSError as error:
        raise WriteError(_explain(directory, error)) from None


def _explain(directory: Path, error: OSError) -> str:
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno not in NO_SPACE:
        return f"{directory}: cannot be written to ({reason}): set data.store_dir to a writable directory"
    try:
        free = f"{shutil.disk_usage(directory).free / 1e9:.2f} GB are free there"
    except OSError:
        free = "free space unknown"
    return (
        f"{directory}: no space to write ({reason}; {free}): make space, or set data.store_dir to another disk, and "
        "run again; finished parts are kept"
    )


@contextmanager
def exclusive(product: Path) -> Iterator[None]:
    """Hold the lock of a product; it is released when the process ends. Raises WriteError."""
    with explain_write_errors(product.parent):
        product.parent.mkdir(parents=True, exist_ok=True)
        lock = open(product.with_name(f".{product.name}.lock"), "w")  # noqa: SIM115  closed below
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("%s: waiting for the process that builds it", product)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_atomically(path: Path, data: bytes | Iterable[bytes], durable: bool = True) -> None:
    """Write a file completely or not at all; `durable`: even after a power failure. Raises WriteError."""
    with explain_write_errors(path.parent):
        atomic_files.write_atomically(path, data, durable=durable)


def place_copy(source: Path, target: Path) -> None:
    """Create `target` as a hard link to `source`, or as a copy if a link is impossible. Raises OSError."""
    temporary = atomic_files.name_temporary(target)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
            atomic_files.sync(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(directory: Path) -> None:
    """Remove the temporary files of killed processes. The caller must hold the lock of the directory."""
    for path in directory.rglob(TEMPORARY_PATTERN):
        path.unlink(missing_ok=True)


class ShardWriter:
    """Writes the documents of one part and split to a shard, which has its final name only after `close`.

    A shard without documents has no file. The file is not flushed to disk; `save_result` does that. Raises WriteError.
    """

    def __init__(self, directory: Path, split: Split, part: str | int):
        self._path = directory / f"{split}-{part}.arrow"
        self._temporary = atomic_files.name_temporary(self._path)
        self._file: pa.OSFile | None = None
        self._writer: pa.RecordBatchStreamWriter | None = None
        self._split: Split = split
        self._counts = [0, 0, 0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._file is not None and kind is not None:
            self._file.close()
            self._temporary.unlink(missing_ok=True)

    def write(self, batch: pa.RecordBatch, text_bytes: int) -> None:
        """Append a batch of documents; `text_bytes` is the UTF-8 size of their texts."""
        if not batch.num_rows:
            return
        with explain_write_errors(self._path.parent):
            if self._writer is None:
                self._file = pa.OSFile(str(self._temporary), "wb")
                self._writer = pa.ipc.new_stream(self._file, SCHEMA)
            self._writer.write_batch(batch)
        tokens = len(batch.column("ids").flatten())
        self._counts = [a + b for a, b in zip(self._counts, (batch.num_rows, tokens, text_bytes), strict=True)]

    def close(self) -> Shard | None:
        """Finish the file; return None if nothing was written."""
        if self._writer is None or self._file is None:
            return None
        with explain_write_errors(self._path.parent):
            self._writer.close()
            self._file.close()
            size, content = self._temporary.stat().st_size, hash_file(self._temporary)
            os.replace(self._temporary, self._path)
        documents, tokens, text_bytes = self._counts
        return Shard(self._path.name, self._split, documents, tokens, text_bytes, size, content)
