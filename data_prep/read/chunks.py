"""Splits a file into chunks at places that its content determines, and hashes each chunk, in one pass over the file.

Files of lines are cut at line ends. The next cut is, among the line ends between MIN_BYTES and MAX_BYTES after the last
cut, the one whose neighbouring bytes have the lowest hash. So a cut depends on the text around it, not on its distance
from the start of the file: if a line is inserted, deleted or changed, only the cuts of its chunk move, rarely those of
the next, and all others stay (tests count them). A line longer than the window stays whole; a remainder of up to
MAX_BYTES is one chunk. Parquet is cut into row groups. Arrow is cut after record batches, also chosen by their content;
the hash of such a chunk covers the data in its columns. A file of any other format is one chunk.

Throughput is about 1.5 GB/s with 1 kB lines; half of the time goes into finding line ends. Memory is two windows,
48 MiB. Cutting at a local extreme of a hash is from Bjørner, Blass and Gurevich, "Content-dependent chunking for
differential compression, the local maximum approach" (2010).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from data_prep.hash_mixing import GOLDEN_RATIO
from data_prep.read.files import COMPRESSIONS, READ_ERRORS
from data_prep.read.sources import SourceFile
from data_prep.read.tables import open_arrow

MIN_BYTES = 8 * 2**20
MAX_BYTES = 24 * 2**20
REACH = 128  # bytes compared on each side of a line end; for most, the nearest 8 decide
BLOCK_BYTES = 2**20
CACHED_BYTES = 2**18
LINE_FORMATS = ("jsonl", "lines")
# Metadata of a column chunk that only locate or summarise it and do not change how it is read.
NOT_CONTENT = {
    "file_offset", "file_path", "data_page_offset", "dictionary_page_offset", "index_page_offset", "statistics",
    "is_stats_set", "geo_statistics", "bloom_filter_offset", "bloom_filter_length",
}  # fmt: skip


class Chunk(NamedTuple):
    """A piece of a file.

    start, end: as in `Span`.
    first_line: number of its first line or row in the file, from 1.
    size: bytes.
    hash: 32 hex digits.
    """

    start: int
    end: int | None
    first_line: int
    size: int
    hash: str


class Content(NamedTuple):
    """The content of a file: a hash of all its bytes, and its chunks."""

    hash: str
    chunks: tuple[Chunk, ...]


def cut_file(file: SourceFile) -> Content:
    """Split and hash a file. Raises OSError when it cannot be read."""
    if Path(file.path).suffix.lower() not in COMPRESSIONS:
        if file.format == "parquet":
            return _cut_parquet(file)
        if file.format == "arrow" and file.size > MAX_BYTES:
            return _cut_arrow(file)
        if file.format in LINE_FORMATS and file.size > MAX_BYTES:
            with open(file.path, "rb", buffering=0) as opened:
                return _join(tuple(_cut_lines(opened)))
    return _take_whole(file)


def _join(chunks: tuple[Chunk, ...], rest: str = "") -> Content:
    parts = "".join(f"{chunk.size}:{chunk.hash};" for chunk in chunks)
    return Content(xxhash.xxh3_128_hexdigest((parts + rest).encode()), chunks)


def _take_whole(file: SourceFile) -> Content:
    with open(file.path, "rb", buffering=0) as opened:
        found = _hash_bytes(opened, 2**63, xxhash.xxh3_128()).hexdigest()
    return Content(found, (Chunk(0, None, 1, file.size, found),))


def _hash_bytes(file: BinaryIO, size: int, state: Any) -> Any:
    """Add the next `size` bytes, or fewer at the end of the file, to a hash state, and return it."""
    while size > 0 and (block := file.read(min(size, BLOCK_BYTES))):
        state.update(block)
        size -= len(block)
    return state


def _cut_lines(file: BinaryIO) -> Iterator[Chunk]:
    buffer = np.zeros(MAX_BYTES + 2 * REACH, np.uint8)
    view: Any = memoryview(cast(Any, buffer))
    start, line, filled = 0, 1, 0
    while filled := _fill(file, view[: MAX_BYTES + REACH], filled):
        buffer[filled : filled + REACH] = 0
        cut, lines = (filled, 0) if filled <= MAX_BYTES else _find_cut(buffer)
        state = xxhash.xxh3_128(view[: cut or filled])
        size = cut or filled + _hash_line_rest(file, state)
        yield Chunk(start, start + size, line, size, state.hexdigest())
        start, line, filled = start + size, line + lines, filled - (cut or filled)
        view[:filled] = view[cut : cut + filled]


def _fill(file: BinaryIO, view: memoryview, filled: int) -> int:
    """Read into the buffer after its first `filled` bytes; return the number of bytes now in it."""
    while filled < len(view) and (count := file.readinto(view[filled:])):  # type: ignore[attr-defined]
        filled += count
    return filled


def _find_cut(buffer: NDArray[np.uint8]) -> tuple[int, int]:
    """Choose a line end in a full window.

    Returns the number of bytes up to and including it (0: no line ends in the window), and of lines.
    """
    head = sum(int(np.count_nonzero(mask)) for _, mask in _mark_line_ends(buffer, 0, MIN_BYTES))
    ends = np.concatenate([at + find_true(mask) for at, mask in _mark_line_ends(buffer, MIN_BYTES, MAX_BYTES)])
    if not len(ends):
        ends = MAX_BYTES + find_true(buffer[MAX_BYTES : MAX_BYTES + REACH] == ord("\n"))
        return (int(ends[0]) + 1 if len(ends) else 0), head + 1
    chosen = _choose(buffer, ends)
    return chosen + 1, head + int(np.searchsorted(ends, chosen)) + 1


def _mark_line_ends(buffer: NDArray[np.uint8], start: int, end: int) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Masks of the line feeds, with the offset of each mask, in blocks that fit in the processor's cache."""
    for at in range(start, end, CACHED_BYTES):
        yield at, buffer[at : min(end, at + CACHED_BYTES)] == ord("\n")


def _choose(buffer: NDArray[np.uint8], ends: NDArray[np.int64]) -> int:
    """Choose the line end whose neighbouring bytes have the lowest hash.

    Compares the nearest 8 bytes before, then the nearest 8 after, and moves outwards while there is a tie.
    """
    words = np.ndarray((len(buffer) - 7,), "<u8", buffer, 0, (1,))  # the 8 bytes that start at each byte
    for distance in range(0, REACH - 8, 8):
        for offset in (-8 - distance, 1 + distance):
            if len(ends) > 1:
                ranks = words[ends + offset] * GOLDEN_RATIO
                ends = ends[ranks == ranks.min()]
    return int(ends[0])


def find_true(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Do what `np.flatnonzero` does, three times as fast if few are true: tests eight values at a time first."""
    whole = len(mask) // 8 * 8
    hits = np.flatnonzero(mask[:whole].view(np.uint64) != 0)
    within = np.flatnonzero(mask[:whole].reshape(-1, 8)[hits])
    return np.concatenate([hits[within >> 3] * 8 + (within & 7), whole + np.flatnonzero(mask[whole:])])


def _hash_line_rest(file: BinaryIO, state: Any) -> int:
    """Hash the rest of a line; return its size in bytes and leave the file position after it."""
    size = 0
    while block := file.read(BLOCK_BYTES):
        length = block.find(b"\n") + 1 or len(block)
        state.update(block[:length])
        size += length
        if block[length - 1] == ord("\n"):
            file.seek(length - len(block), 1)
            break
    return size


def _cut_parquet(file: SourceFile) -> Content:
    """Make one chunk of each row group; its hash covers its bytes and how the footer says to read them."""
    try:
        metadata = pq.read_metadata(file.path)
        groups = [_describe_group(metadata, index) for index in range(metadata.num_row_groups)]
    except (*READ_ERRORS, ValueError):  # the reader reports it, with the place
        return _take_whole(file)
    edges = [edge for start, end, _ in groups for edge in (start, end)]
    if not groups or edges != sorted(edges) or edges[-1] > file.size:
        return _take_whole(file)
    schema = f"{metadata.schema.to_arrow_schema()} {(metadata.metadata or {}).get(b'ARROW:schema')}".encode()
    chunks, rest, row = [], xxhash.xxh3_128(), 1
    with open(file.path, "rb", buffering=0) as opened:
        for index, (start, end, described) in enumerate(groups):
            _hash_bytes(opened, start - opened.tell(), rest)
            state = _hash_bytes(opened, end - start, xxhash.xxh3_128(schema + described.encode()))
            chunks.append(Chunk(index, index + 1, row, end - start, state.hexdigest()))
            row += metadata.row_group(index).num_rows
        _hash_bytes(opened, 2**63, rest)
    return _join(tuple(chunks), rest.hexdigest())


def _describe_group(metadata: Any, index: int) -> tuple[int, int, str]:
    """First byte and end of a row group, and a description of how its columns are encoded."""
    group = metadata.row_group(index)
    columns = [group.column(i).to_dict() for i in range(group.num_columns)]
    starts = [min(column["dictionary_page_offset"] or 2**63, column["data_page_offset"]) for column in columns]
    ends = [start + column["total_compressed_size"] for start, column in zip(starts, columns, strict=True)]
    how = [{key: value for key, value in column.items() if key not in NOT_CONTENT} for column in columns]
    return min(starts), max(ends), f"{group.num_rows} {how}"


def _cut_arrow(file: SourceFile) -> Content:
    """Group consecutive record batches into chunks.

    The hash of a batch decides whether it ends a chunk; the probability is its size divided by MIN_BYTES.
    """
    whole = _take_whole(file)
    try:
        with pa.memory_map(file.path) as raw:
            chunks = tuple(_group_batches(open_arrow(raw)))
    except (*READ_ERRORS, ValueError):  # the reader reports it, with the place
        return whole
    return Content(whole.hash, chunks) if len(chunks) > 1 else whole


def _group_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
    state, start, end, row, rows, size = xxhash.xxh3_128(), 0, 0, 1, 0, 0
    for end, batch in enumerate(batches, 1):
        if "dictionary<" in str(batch.schema):
            raise ValueError("a batch with dictionary columns: its buffers do not contain all of its data")
        found, batch_size = _hash_batch(batch)
        state.update(found.encode())
        rows, size = rows + batch.num_rows, size + batch_size
        if size >= MAX_BYTES or (size >= MIN_BYTES and int(found[:8], 16) * MIN_BYTES < batch_size << 32):
            yield Chunk(start, end, row, size, state.hexdigest())
            state, start, row, rows, size = xxhash.xxh3_128(), end, row + rows, 0, 0
    if end > start:
        yield Chunk(start, end, row, size, state.hexdigest())


def _hash_batch(batch: pa.RecordBatch) -> tuple[str, int]:
    """Hash of the schema and all buffers of a batch, and the size of the buffers in bytes; offsets are not checked."""
    schema = batch.schema.to_string(show_field_metadata=True, show_schema_metadata=False)
    state = xxhash.xxh3_128(f"{schema} {batch.num_rows}".encode())
    buffers = [buffer or pa.py_buffer(b"") for column in batch.columns for buffer in column.buffers()]
    for buffer in buffers:
        state.update(f"{buffer.size};".encode())
        state.update(buffer)
    return state.hexdigest(), sum(buffer.size for buffer in buffers)
