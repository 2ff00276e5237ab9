"""A file's bytes, the piece of it that is read, and what comes out: records, each with its place of origin."""

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
BLOCK_BYTES = 64 * 2**10  # a decompressor that meets damage gives nothing of the block it was asked for
BOM = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# Inode, size, mtime and ctime in ns. ctime moves at every write and cannot be set back.
Stamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class Span:
    """A piece of a file: bytes [start, end) of lines, row groups of Parquet, record batches of Arrow, shards of a
    streamed dataset; end None = to its end. Spans of lines begin and end at line ends. `first_line` is the number of
    the first line (or row) of the span in its file; `stamp` is of the file when what it holds was named."""

    path: str
    format: Format
    start: int = 0
    end: int | None = None
    first_line: int = 1
    stamp: Stamp | None = field(default=None, compare=False)


def read_stamp(path: str | Path) -> Stamp:
    """Raises OSError."""
    stat = os.stat(path)
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@contextmanager
def refuse_changes(spans: Iterable[Span]) -> Iterator[None]:
    """For reading spans whose content has a name already. Raises UserError when a file is not what it was, also in
    place of one about a record of it."""
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
    """`value` is a text or a dict; `unit` and `number` (from 1) say where: "line" 7, "row group at byte 4, row" 9.

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
        """As `bad_records.jsonl` lists it."""
        return orjson.dumps({**asdict(self), "path": show_path(self.path)}) + b"\n"


def show_path(path: str) -> str:
    """A path that any encoder takes: bytes of its name that are no UTF-8 are written as escapes."""
    return os.fsencode(path).decode(errors="backslashreplace")


@dataclass
class Reading:
    """A span being read. `unit` and `number` are those of the last record that was passed, so that an error in the
    middle of a file can name the place. `column`: the one key that is wanted (None: all), for formats that can choose.
    `records_key`: where the records of a JSON file lie; `delimiter`: what splits fields (None: both are found).
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
        """A bad record at this line or record number of the file."""
        return BadRecord(self.span.path, self.unit, self.number if number is None else number, reason)

    def explain_size(self, what: str, size: int) -> str:
        """Reason for a record over the limit; `size` in bytes."""
        return (
            f"{what} of {_format_bytes(size)}, over data.max_record_bytes ({_format_bytes(self.limit)}): "
            "cut it into documents, or raise the limit"
        )


def _format_bytes(size: int) -> str:
    return f"{size:,} bytes" if size < 2**20 else f"{size / 2**20:,.1f} MiB"


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
            raw = pa.input_stream(path, compression="zstd", buffer_size=BLOCK_BYTES)
            return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, raw), BLOCK_BYTES))
    return open(path, "rb")


def read_blocks(file: BinaryIO, size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Bytes to the end, at most `size` at a time. `read1`, because `read` loses what came before an error."""
    read: Any = getattr(file, "read1")  # noqa: B009  every reader of `open_binary` has it; typing's BinaryIO has not
    while block := read(size):
        yield block


def read_whole(reading: Reading) -> tuple[bytes, int]:
    """All bytes of a file without a byte order mark, and how many were read; none of a file over the limit."""
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
    """Offset and reason of the first byte that is no text: invalid UTF-8 or a NUL; None for a text."""
    if data.startswith(UTF16_MARKS):
        return 0, "UTF-16, as Excel writes its Unicode text: save it as UTF-8"
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start, f"invalid UTF-8 at {what} {error.start} ({error.reason})"
    nul = data.find(b"\0")
    return (nul, f"a NUL at {what} {nul}: no text, or not UTF-8") if nul >= 0 else None


def one_line(error: Exception) -> str:
    """The error's text without line breaks."""
    return " ".join(str(error).split())
