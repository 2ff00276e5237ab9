"""Defines spans of files and records with their place of origin, and reads the bytes of files."""

import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import orjson
import pyarrow as pa

from data_prep.errors import UserError
from data_prep.options import MAX_RECORD_BYTES

Format = Literal["jsonl", "json", "parquet", "arrow", "csv", "tsv", "text", "lines", "corpus", "hf_stream"]
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
READ_ERRORS = (OSError, EOFError, UnicodeDecodeError, zlib.error, lzma.LZMAError, pa.ArrowException)
BLOCK_BYTES = 64 * 2**10  # small, because a decompressor returns nothing of a block with damaged data
BOM = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# Inode, size in bytes, mtime and ctime in ns. ctime changes at every write and cannot be set.
Stamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class Span:
    """A piece of a file.

    start, end: the range [start, end) of bytes (files of lines; at line ends), row groups (Parquet), record batches
        (Arrow) or shards (streamed dataset). end=None is the end of the file.
    first_line: number of the first line or row of the span in its file, from 1.
    stamp: the stamp of the file when its content was hashed.
    """

    path: str
    format: Format
    start: int = 0
    end: int | None = None
    first_line: int = 1
    stamp: Stamp | None = field(default=None, compare=False)


def read_stamp(path: str | Path) -> Stamp:
    """Read the stamp of a file, which changes when the file changes. Raises OSError."""
    stat = os.stat(path)
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@contextmanager
def refuse_changes(spans: Iterable[Span]) -> Iterator[None]:
    """Raises UserError when a file of the spans changed since its content was hashed.

    This error replaces a UserError about a record that was raised inside of the context.
    """
    try:
        yield
    except UserError:
        _check_stamps(spans)
        raise
    _check_stamps(spans)


def _check_stamps(spans: Iterable[Span]) -> None:
    for path, stamp in {span.path: span.stamp for span in spans if span.stamp is not None}.items():
        try:
            is_same = read_stamp(path) == stamp
        except OSError:
            is_same = False
        if not is_same:
            raise UserError(f"{show_path(path)}: changed while it was read; run again")


@dataclass(slots=True)
class Record:
    """A record: `value` is a text or a dict, `unit` and `number` (from 1) its place, for example "line" 7.

    Not frozen: there are millions of them, and freezing costs 0.6 µs each.
    """

    value: Any
    path: str
    unit: str
    number: int


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used, with its place of origin and the reason."""

    path: str
    unit: str
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}, {self.unit} {self.number}: {self.reason}"

    def to_json_line(self) -> bytes:
        """Return its line of `bad_records.jsonl`."""
        return orjson.dumps({**asdict(self), "path": show_path(self.path)}) + b"\n"


def show_path(path: str) -> str:
    """Return a path as valid Unicode: bytes of its name that are not UTF-8 are written as escapes."""
    return os.fsencode(path).decode(errors="backslashreplace")


@dataclass
class Reading:
    """A span that is being read.

    limit: size of the largest record, bytes.
    column: the only key that is needed, for formats that can skip others; None: all.
    records_key: keys that lead to the records of a JSON file; delimiter: of a CSV file. None: detected.
    unit, number: place of the last record that was read, so that an error in the middle of a file can name it.
    """

    span: Span
    limit: int = MAX_RECORD_BYTES
    column: str | None = None
    records_key: str | None = None
    delimiter: str | None = None
    unit: str = "line"
    number: int = field(init=False)

    def __post_init__(self) -> None:
        self.number = self.span.first_line - 1

    def refuse(self, reason: str, number: int | None = None) -> BadRecord:
        """Make a bad record at line or record `number` of the file; None is the last one read."""
        return BadRecord(self.span.path, self.unit, self.number if number is None else number, reason)

    def explain_size(self, what: str, size: int) -> str:
        """Return the reason for a record over the limit; `size` in bytes."""
        return (
            f"{what} of {_format_bytes(size)} is larger than data.max_record_bytes ({_format_bytes(self.limit)}): "
            "split it into documents, or raise the limit"
        )


def _format_bytes(size: int) -> str:
    return f"{size:,} bytes" if size < 2**20 else f"{size / 2**20:,.1f} MiB"


def open_binary(path: str) -> BinaryIO:
    """Open a file for reading its decompressed bytes; its suffix names the compression. Raises OSError."""
    match Path(path).suffix.lower():
        case ".gz":
            return cast(BinaryIO, gzip.open(path, "rb"))
        case ".bz2":
            return cast(BinaryIO, bz2.open(path, "rb"))
        case ".xz":
            return cast(BinaryIO, lzma.open(path, "rb"))
        case ".zst":  # Arrow's reader raises for a truncated file; that of zstandard does not
            raw = pa.input_stream(path, compression="zstd", buffer_size=BLOCK_BYTES)
            return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, raw), BLOCK_BYTES))
    return open(path, "rb")


def read_blocks(file: BinaryIO, size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Read to the end, at most `size` bytes at a time.

    Uses `read1`, because `read` loses the data before an error.
    """
    read: Any = getattr(file, "read1")  # noqa: B009  all files of `open_binary` have it, but typing.BinaryIO does not
    while block := read(size):
        yield block


def read_whole(reading: Reading) -> tuple[bytes, int]:
    """Read a file; return its bytes without a byte order mark, and its size in bytes.

    The bytes are empty if the file is over the limit.
    """
    pieces: list[bytes] = []
    size = 0
    with open_binary(reading.span.path) as file:
        for block in read_blocks(file):
            size += len(block)
            pieces.append(block)
            if size > reading.limit:
                pieces.clear()
    return b"".join(pieces).removeprefix(BOM), size


def find_text_fault(data: bytes, what: str = "byte") -> tuple[int, str] | None:
    """Find the first invalid UTF-8 or NUL byte; return its offset and the reason, or None for valid text."""
    if data.startswith(UTF16_MARKS):
        return 0, "UTF-16, which Excel writes as Unicode text: save it as UTF-8"
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start, f"invalid UTF-8 at {what} {error.start} ({error.reason})"
    nul = data.find(b"\0")
    return (nul, f"a NUL at {what} {nul}: binary data, or text that is not UTF-8") if nul >= 0 else None


def one_line(error: Exception) -> str:
    """Return the message of an error without line breaks."""
    return " ".join(str(error).split())
