"""A file cut where its content says, each piece with the hash of its bytes, in one pass over the file.

Files of lines are cut at line ends. The next cut is, of the line ends between MIN_BYTES and MAX_BYTES behind the last
cut, the one whose neighbouring bytes hash lowest, so cuts hang on the text around them and not on how far they are
from the beginning: a line that is inserted, deleted or changed moves the cuts of the piece it stands in, rarely of
the next, and all others stay (tests count them). A line that is longer than the window stays whole; a rest of up to
MAX_BYTES is one piece. Parquet is cut by row group. Arrow is cut behind record batches that content chooses, too; a
piece is named by what its columns hold. Everything else is one piece.

Costs about 1.5 GB/s with 1 kB lines, half of it for finding line ends; memory is two windows, 48 MiB.
Choosing a cut by a local extreme of a hash: Bjørner, Blass and Gurevich, "Content-dependent chunking for differential
compression, the local maximum approach" (2010).
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
REACH = 128  # bytes looked at on each side of a line end; most are distinguished by the nearest 8
BLOCK_BYTES = 2**20
CACHED_BYTES = 2**18
LINE_FORMATS = ("jsonl", "lines")
# Of a column chunk's metadata, what says where it lies or sums it up, not how it is read.
NOT_CONTENT = {
    "file_offset", "file_path", "data_page_offset", "dictionary_page_offset", "index_page_offset", "statistics",
    "is_stats_set", "geo_statistics", "bloom_filter_offset", "bloom_filter_length",
}  # fmt: skip


class Chunk(NamedTuple):
    """A piece of a file: `start` and `end` as in `Span`, the number of its first line or row, its size in bytes."""

    start: int
    end: int | None
    first_line: int
    size: int
    hash: str


class Content(NamedTuple):
    """What a file holds: a hash that no changed byte leaves as it was, and the pieces."""

    hash: str
    chunks: tuple[Chunk, ...]


def cut_file(file: SourceFile) -> Content:
    """All of a file. Raises OSError when it cannot be read."""
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
    """The state after the next `size` bytes, or those to the end."""
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
    """Bytes in the buffer after as many as fit have been added to the first `filled`."""
    while filled < len(view) and (count := file.readinto(view[filled:])):  # type: ignore[attr-defined]
        filled += count
    return filled


def _find_cut(buffer: NDArray[np.uint8]) -> tuple[int, int]:
    """Bytes up to and with the chosen line end of a full window (0: its last line goes on behind it), and the lines."""
    head = sum(int(np.count_nonzero(mask)) for _, mask in _mark_line_ends(buffer, 0, MIN_BYTES))
    ends = np.concatenate([at + find_true(mask) for at, mask in _mark_line_ends(buffer, MIN_BYTES, MAX_BYTES)])
    if not len(ends):
        ends = MAX_BYTES + find_true(buffer[MAX_BYTES : MAX_BYTES + REACH] == ord("\n"))
        return (int(ends[0]) + 1 if len(ends) else 0), head + 1
    chosen = _choose(buffer, ends)
    return chosen + 1, head + int(np.searchsorted(ends, chosen)) + 1


def _mark_line_ends(buffer: NDArray[np.uint8], start: int, end: int) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """In blocks that stay in the processor's cache."""
    for at in range(start, end, CACHED_BYTES):
        yield at, buffer[at : min(end, at + CACHED_BYTES)] == ord("\n")


def _choose(buffer: NDArray[np.uint8], ends: NDArray[np.int64]) -> int:
    """The line end whose neighbours hash lowest: the nearest 8 bytes before, those after, and so on while they tie."""
    words = np.ndarray((len(buffer) - 7,), "<u8", buffer, 0, (1,))  # 8 bytes from every byte on
    for distance in range(0, REACH - 8, 8):
        for offset in (-8 - distance, 1 + distance):
            if len(ends) > 1:
                ranks = words[ends + offset] * GOLDEN_RATIO
                ends = ends[ranks == ranks.min()]
    return int(ends[0])


def find_true(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """`np.flatnonzero`, three times as fast where few are true: eight at a time first."""
    whole = len(mask) // 8 * 8
    hits = np.flatnonzero(mask[:whole].view(np.uint64) != 0)
    within = np.flatnonzero(mask[:whole].reshape(-1, 8)[hits])
    return np.concatenate([hits[within >> 3] * 8 + (within & 7), whole + np.flatnonzero(mask[whole:])])


def _hash_line_rest(file: BinaryIO, state: Any) -> int:
    """Bytes to the end of the line that began before; leaves the file behind it."""
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
    """A chunk a row group, of its bytes and of what the footer says about how they are read."""
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
    """First byte and end of a row group, and how its columns are written."""
    group = metadata.row_group(index)
    columns = [group.column(i).to_dict() for i in range(group.num_columns)]
    starts = [min(column["dictionary_page_offset"] or 2**63, column["data_page_offset"]) for column in columns]
    ends = [start + column["total_compressed_size"] for start, column in zip(starts, columns, strict=True)]
    how = [{key: value for key, value in column.items() if key not in NOT_CONTENT} for column in columns]
    return min(starts), max(ends), f"{group.num_rows} {how}"


def _cut_arrow(file: SourceFile) -> Content:
    """Batches in a row until one whose hash says so, with a chance of its share in MIN_BYTES, ends the chunk."""
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
            raise ValueError("a batch whose columns are not all that it holds")
        found, batch_size = _hash_batch(batch)
        state.update(found.encode())
        rows, size = rows + batch.num_rows, size + batch_size
        if size >= MAX_BYTES or (size >= MIN_BYTES and int(found[:8], 16) * MIN_BYTES < batch_size << 32):
            yield Chunk(start, end, row, size, state.hexdigest())
            state, start, row, rows, size = xxhash.xxh3_128(), end, row + rows, 0, 0
    if end > start:
        yield Chunk(start, end, row, size, state.hexdigest())


def _hash_batch(batch: pa.RecordBatch) -> tuple[str, int]:
    """A name for the schema and all buffers, and the bytes of these. What offsets point at is not looked at."""
    schema = batch.schema.to_string(show_field_metadata=True, show_schema_metadata=False)
    state = xxhash.xxh3_128(f"{schema} {batch.num_rows}".encode())
    buffers = [buffer or pa.py_buffer(b"") for column in batch.columns for buffer in column.buffers()]
    for buffer in buffers:
        state.update(f"{buffer.size};".encode())
        state.update(buffer)
    return state.hexdigest(), sum(buffer.size for buffer in buffers)
