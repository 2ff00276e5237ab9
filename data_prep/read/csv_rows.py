"""Reads records that are rows of CSV or TSV.

Every line belongs to a row or is refused. Lines are bounded, so a quote that is never closed costs at most
`data.max_record_bytes` of memory. If a quote is closed nowhere, in the wrong place, or not within the limit, its row is
a bad record, and reading continues after the line in which the quote opens. So a stray quote costs one row, and each
line is read at most twice.
The recipe sets the delimiter, or `delimiters` detects it. A first row that looks like data instead of column names is
refused, because it would be lost silently.
"""

from __future__ import annotations

import csv
import re
import sys
from collections import deque
from collections.abc import Iterator

from data_prep.read.delimiters import EXCEL_MARK, sniff_delimiter
from data_prep.read.files import READ_ERRORS, BadRecord, Reading, Record, find_text_fault
from data_prep.read.lines import read_line_blocks

LONGEST_NAME = 80  # characters of a column name; a longer one, or one with MOST_SPACES spaces, is a text
MOST_SPACES = 5
SENTENCE_ENDS = (".", "?", "!", "\u3002", "\uff1f", "\uff01")
# Fields, quoted or not beginning with a quote, each with the delimiter or line end after it; without backtracking.
WHOLE_FIELDS = r'(?:(?:"(?:[^"]++|"")*+"|[^"{0}\r\n][^{0}\r\n]*+)?+(?:{0}|\r?\n))*+'


def read_csv(reading: Reading) -> Iterator[Record | BadRecord]:
    """Read rows as dicts with the keys of the header. A bad header is one bad record, and no row is read."""
    csv.field_size_limit(sys.maxsize)
    lines = _Lines(reading)
    header: list[str] | None = None
    for row in _read_rows(lines):
        if isinstance(row, BadRecord):
            yield row
            if header is None:
                break
        elif header is None:
            if lines.first == 1 and EXCEL_MARK.match(lines.delimiter.join(row)):
                continue
            header = row or None
            if refused := _find_header_fault(row, lines.delimiter):
                yield reading.refuse(refused, lines.first)
                return
        elif len(row) == len(header):
            yield Record(dict(zip(header, row, strict=True)), reading.span.path, "line", lines.first)
        elif row:
            yield reading.refuse(f"{len(row)} fields, but the header has {len(header)}", lines.first)
    if lines.error is not None:
        raise lines.error


def _read_rows(lines: _Lines) -> Iterator[list[str] | BadRecord]:
    """Yield the fields of each row, or a bad row, after which reading starts again."""
    while True:
        rows = csv.reader(lines.read(), delimiter=lines.delimiter, strict=True)
        fault: BadRecord | None = None
        while fault is None:
            lines.begin_row()
            try:
                yield next(rows)
            except StopIteration:
                fault = lines.bad
                break
            except csv.Error as error:
                fault = lines.refuse_row(str(error))
        if fault is None:
            return
        yield fault


def _find_header_fault(names: list[str], delimiter: str) -> str | None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        return f"the header names {', '.join(map(repr, twice))} more than once"
    for name in names:
        if len(name) > LONGEST_NAME or name.count(" ") >= MOST_SPACES or name.rstrip().endswith(SENTENCE_ENDS):
            what = f"{name[:30]}…" if len(name) > 30 else name
            return f"the first row looks like data, not like column names ({what!r}): add a header, or rename it"
    others = {"semicolons": ";", "tabs": "\t", "bars": "|", "commas": ","}
    for what, other in others.items():
        if len(names) == 1 and other != delimiter and other in names[0]:
            return f"the header {names[0]!r} contains {what}, but splitting there gives uneven rows: set delimiter"
    return None


# The number of the first line of a block, and its bytes, or a bad record for a line over the limit.
_Block = tuple[int, bytes | BadRecord]


class _Lines:
    """Lines for `csv.reader`; the blocks of the current row are kept so that they can be read again.

    first: number of the row's first line.
    bad: why the row cannot continue: a line that cannot be read, or the size of the row.
    error: why the file cannot be read further.
    """

    def __init__(self, reading: Reading):
        self.bad: BadRecord | None = None
        self.error: Exception | None = None
        self.first = 1
        self.delimiter = reading.delimiter or sniff_delimiter(reading.span.path, reading.span.format)
        self._reading = reading
        self._blocks = _read_blocks(reading)
        self._again: deque[_Block] = deque()
        self._kept: list[_Block] = []  # those of the row; the last one is decoded as `_lines`
        self._lines: list[str | BadRecord] = []
        self._number = 1  # line number of the first of `_lines`
        self._next = 0  # index of the next of `_lines`
        self._size = 0  # characters of the row

    def begin_row(self) -> None:
        self.first, self._size = self._number + self._next, 0
        if len(self._kept) > 1:
            del self._kept[:-1]

    def read(self) -> Iterator[str]:
        """Yield lines with their line feeds, up to a bad one or the end of the file."""
        self.bad = None
        while self._next < len(self._lines) or self._advance():
            line = self._lines[self._next]
            self._next += 1
            if isinstance(line, BadRecord):
                self.bad = line
                return
            self._size += len(line)
            if self._size > self._reading.limit:
                self.bad = self._reading.refuse(self._reading.explain_size("a row", self._size), self.first)
                return
            yield line

    def _advance(self) -> bool:
        try:
            block = self._again.popleft() if self._again else next(self._blocks, None)
        except READ_ERRORS as error:  # `read_csv` raises it after the rows before it
            self.error, block = error, None
        if block is not None:
            self._kept.append(block)
            self._open(block, 0)
        return block is not None

    def _open(self, block: _Block, start: int) -> None:
        self._number, self._lines, self._next = block[0], _decode(block, self._reading), start

    def refuse_row(self, error: str) -> BadRecord:
        """Make the row a bad record; reading continues after the line in which its unclosed quote opens."""
        text = "".join(self._take_row())
        whole = re.match(WHOLE_FIELDS.format(re.escape(self.delimiter)), text)
        end = whole.end() if whole else 0
        if text[end : end + 1] != '"':  # the fault is in the last line, and no quote joined other lines to the row
            return self.bad or self._refuse(error)
        opened = self.first + text.count("\n", 0, end)
        quote = "the quote that opens here" if opened == self.first else f"the quote that opens in line {opened}"
        self._go_back(opened + 1)
        if self.bad is None:
            is_open = "end of data" in error
            return self._refuse(f"{quote} is {'never closed' if is_open else 'closed in the middle of a field'}")
        if self.bad.number > self.first:
            return self._refuse(f"{quote} is not closed before line {self.bad.number}, which cannot be read")
        return self._reading.refuse(f"{self.bad.reason}, or close {quote}", self.first)

    def _refuse(self, fault: str) -> BadRecord:
        return self._reading.refuse(f"malformed {self._reading.span.format.upper()} ({fault})", self.first)

    def _take_row(self) -> Iterator[str]:
        """Yield the text of the row so far, block by block."""
        for number, data in self._kept:
            is_last = number == self._number
            lines = self._lines[: self._next] if is_last else _decode((number, data), self._reading)
            yield "".join(line for line in lines[max(0, self.first - number) :] if isinstance(line, str))

    def _go_back(self, number: int) -> None:
        """Go back to a line of the row, or to the line after its last."""
        while number < self._number:
            self._again.appendleft(self._kept.pop())
            self._open(self._kept[-1], 0)
        self._next = number - self._number


def _read_blocks(reading: Reading) -> Iterator[_Block]:
    for item in read_line_blocks(reading):
        yield (item.number, item) if isinstance(item, BadRecord) else (item[0], b"\n".join(item[1]))


def _decode(block: _Block, reading: Reading) -> list[str | BadRecord]:
    """Decode a block to lines with their line feeds, at once if none of them is bad."""
    number, data = block
    if isinstance(data, BadRecord):
        return [data]
    if find_text_fault(data) is None:
        return [line + "\n" for line in data.decode().split("\n")]
    lines = data.split(b"\n")
    faults = [find_text_fault(line) for line in lines]
    return [
        line.decode() + "\n" if fault is None else reading.refuse(fault[1], at)
        for at, (line, fault) in enumerate(zip(lines, faults, strict=True), number)
    ]
