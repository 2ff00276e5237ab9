"""Files to records: one iterator for every format, each record with its place of origin.

Guarantees: a record that cannot be read becomes a `BadRecord` that names file, line and reason; it is never dropped
in silence and never raises. Lines, rows and text files are streamed; a `.json` file that is one array is held whole.
"""

import bz2
import csv
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.corpus import read_corpus_documents

Format = Literal["jsonl", "json", "parquet", "csv", "tsv", "text", "lines", "corpus"]
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)
ROWS_AT_A_TIME = 1024


@dataclass(frozen=True)
class Span:
    """A piece of a file: bytes [start, end) of lines, or row groups [start, end) of Parquet; end None = to its end.

    A line belongs to the span in which it starts.
    """

    path: str
    format: Format
    start: int = 0
    end: int | None = None


@dataclass(frozen=True)
class Record:
    """`value` is a text or a dict; `number` counts lines, rows or records of the file from 1."""

    value: Any
    path: str
    unit: str
    number: int


@dataclass(frozen=True)
class BadRecord:
    path: str
    unit: str
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}, {self.unit} {self.number}: {self.reason}"


def open_binary(path: str) -> BinaryIO:
    """The decompressed bytes of a file; the suffix names the compression."""
    match Path(path).suffix.lower():
        case ".gz":
            return cast(BinaryIO, gzip.open(path, "rb"))
        case ".bz2":
            return cast(BinaryIO, bz2.open(path, "rb"))
        case ".xz":
            return cast(BinaryIO, lzma.open(path, "rb"))
        case ".zst":  # Arrow's reader says so when the file is cut short; zstandard's does not
            raw = pa.input_stream(path, compression="zstd", buffer_size=1 << 20)
            return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, raw), 1 << 20))
    return open(path, "rb")


def read_records(span: Span) -> Iterator[Record | BadRecord]:
    """Records of one span, in order."""
    progress = _Progress(span)
    found = False
    try:
        for record in _READERS[span.format](span, progress):
            found = True
            yield record
        if not found and span.start == 0:
            yield BadRecord(span.path, progress.unit, 1, "the file holds no record")
    except READ_ERRORS as error:
        reason = f"cannot be read on from here ({type(error).__name__}: {_one_line(error)})"
        yield BadRecord(span.path, progress.unit, progress.number + 1, reason)


@dataclass
class _Progress:
    """Where a reader stands, so that an error in the middle of a file can name the place."""

    span: Span
    unit: str = "line"
    number: int = 0


def _read_lines(span: Span, progress: _Progress) -> Iterator[bytes]:
    with open_binary(span.path) as file:
        position = span.start
        if span.start:
            file.seek(span.start - 1)
            position += len(file.readline()) - 1
            progress.number = _count_lines(span.path, position)
        while span.end is None or position < span.end:
            line = file.readline()
            if not line:
                return
            if position == 0:
                line = line.removeprefix(b"\xef\xbb\xbf")
            position = file.tell() if span.end is not None else 1
            progress.number += 1
            yield line


def _count_lines(path: str, end: int) -> int:
    """Lines before byte `end`. Costs a read of the file up to there, about 3 GB/s."""
    count = 0
    with open(path, "rb") as file:
        while end > 0 and (block := file.read(min(end, 1 << 20))):
            count += block.count(b"\n")
            end -= len(block)
    return count


def _read_jsonl(span: Span, progress: _Progress) -> Iterator[Record | BadRecord]:
    for line in _read_lines(span, progress):
        if line.isspace():
            continue
        try:
            yield Record(orjson.loads(line), span.path, "line", progress.number)
        except orjson.JSONDecodeError as error:
            yield BadRecord(span.path, "line", progress.number, _find_json_fault(line, error))


def _find_json_fault(data: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        data.decode()
    except UnicodeDecodeError as utf8:
        return f"invalid UTF-8 at byte {utf8.start} ({utf8.reason})"
    return f"malformed JSON ({_one_line(error)})"


def _read_json(span: Span, progress: _Progress) -> Iterator[Record | BadRecord]:
    with open_binary(span.path) as file:
        data = file.read().removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        return
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        yield BadRecord(span.path, "line", error.lineno, _find_json_fault(data, error))
        return
    for number, item in enumerate(value if isinstance(value, list) else [value], 1):
        yield Record(item, span.path, "record", number)


def _read_parquet(span: Span, progress: _Progress) -> Iterator[Record | BadRecord]:
    progress.unit = "row"
    compressed = Path(span.path).suffix.lower() in COMPRESSIONS
    with open_binary(span.path) as raw:
        file = pq.ParquetFile(pa.BufferReader(raw.read()) if compressed else raw)
        end = file.num_row_groups if span.end is None else span.end
        progress.number = sum(file.metadata.row_group(i).num_rows for i in range(span.start))
        for batch in file.iter_batches(ROWS_AT_A_TIME, row_groups=list(range(span.start, end))):
            for row in range(batch.num_rows):
                progress.number += 1
                try:
                    yield Record(batch.slice(row, 1).to_pylist()[0], span.path, "row", progress.number)
                except UnicodeDecodeError as error:
                    yield BadRecord(span.path, "row", progress.number, f"invalid UTF-8 at byte {error.start}")


def _read_csv(span: Span, progress: _Progress) -> Iterator[Record | BadRecord]:
    csv.field_size_limit(sys.maxsize)
    with open_binary(span.path) as raw:
        # Undecodable bytes become lone surrogates here, so that the line they stand in can be named below.
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
        rows = csv.DictReader(text, delimiter="\t" if span.format == "tsv" else ",", strict=True)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadRecord(span.path, "line", rows.line_num, f"malformed {span.format.upper()} ({error})")
                continue
            progress.number = rows.line_num
            if None in row or None in row.values():
                names = len(rows.fieldnames or ())
                yield BadRecord(span.path, "line", rows.line_num, f"not as many fields as the header ({names})")
            elif any(_has_surrogate(value) for value in row.values()):
                yield BadRecord(span.path, "line", rows.line_num, "invalid UTF-8")
            else:
                yield Record(row, span.path, "line", rows.line_num)


def _has_surrogate(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return True
    return False


def _read_text(span: Span, progress: _Progress) -> Iterator[Record | BadRecord]:
    with open_binary(span.path) as file:
        data = file.read()
    yield _decode(data.removeprefix(b"\xef\xbb\xbf"), span.path, 1)


def _read_text_lines(span: Span, progress: _Progress) -> Iterator[Record | BadRecord]:
    for line in _read_lines(span, progress):
        if not line.isspace():
            yield _decode(line.rstrip(b"\r\n"), span.path, progress.number)


def _decode(data: bytes, path: str, line: int) -> Record | BadRecord:
    try:
        return Record(data.decode(), path, "line", line)
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        return BadRecord(path, "line", line, f"invalid UTF-8 at byte {error.start} ({error.reason})")


def _read_corpus(span: Span, progress: _Progress) -> Iterator[Record | BadRecord]:
    progress.unit = "document"
    try:
        texts = read_corpus_documents(Path(span.path))
    except (SyntaxError, UnicodeDecodeError) as error:
        yield BadRecord(span.path, "line", 1, f"not decodable as Python source ({_one_line(error)})")
        return
    for number, text in enumerate(texts, 1):
        yield Record(text, span.path, "document", number)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


_READERS = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "parquet": _read_parquet,
    "csv": _read_csv,
    "tsv": _read_csv,
    "text": _read_text,
    "lines": _read_text_lines,
    "corpus": _read_corpus,
}
