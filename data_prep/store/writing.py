"""Files of a store, written whole or not at all.

Every file is written beside its name and renamed, so what bears a final name is whole. Shards and results of parts are
flushed to disk while others are written, a result only after its shards, the manifest after everything: a power cut
leaves no store that is whole by its manifest and not by its shards, and no finished part without its shards. A disk
that is full, a file that grows too large and a file system that is read-only become one `WriteError` that names the
directory and the space that is left; what was begun is removed, what was finished stays.
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
    """Nothing more can be written to a directory. What it holds under final names is whole."""


@contextmanager
def explain_write_errors(directory: Path) -> Iterator[None]:
    """OSError while writing to `directory` as WriteError."""
    try:
        yield
    except OSError as error:
        raise WriteError(_explain(directory, error)) from None


def _explain(directory: Path, error: OSError) -> str:
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno not in NO_SPACE:
        return f"{directory}: cannot be written to ({reason}): set data.store_dir to a directory that can"
    try:
        free = f"{shutil.disk_usage(directory).free / 1e9:.2f} GB are free there"
    except OSError:
        free = "nobody knows how much is free there"
    return (
        f"{directory}: no space to write ({reason}; {free}): make space, or set data.store_dir to another disk, and "
        "run again; what is finished is kept"
    )


@contextmanager
def exclusive(product: Path) -> Iterator[None]:
    """Holds the lock of a product; a process that dies lets go of it. Raises WriteError."""
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
    """A file that is either whole or absent; after a power cut, too, when it is `durable`. Raises WriteError."""
    with explain_write_errors(path.parent):
        atomic_files.write_atomically(path, data, durable=durable)


def place_copy(source: Path, target: Path) -> None:
    """`target` with the content of `source`: a hard link, or a copy where there can be none."""
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
    """What killed processes left behind. Only for who holds the directory's lock."""
    for path in directory.rglob(TEMPORARY_PATTERN):
        path.unlink(missing_ok=True)


class ShardWriter:
    """Writes the documents of one part and split; nothing under the final name until `close`, no file when empty.

    Not flushed to disk (`save_result` does that). Raises WriteError.
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
        """Append a batch of documents to the shard."""
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
        """Finish the file; None when nothing was written."""
        if self._writer is None or self._file is None:
            return None
        with explain_write_errors(self._path.parent):
            self._writer.close()
            self._file.close()
            size, content = self._temporary.stat().st_size, hash_file(self._temporary)
            os.replace(self._temporary, self._path)
        documents, tokens, text_bytes = self._counts
        return Shard(self._path.name, self._split, documents, tokens, text_bytes, size, content)
