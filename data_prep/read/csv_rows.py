"""Records that are rows of CSV or TSV.

Read from bounded lines, so a quote that is never closed costs `data.max_record_bytes` of memory and not the file.
Every line is part of a row, or refused: where a row breaks, because its quote is closed nowhere, in the wrong place or
not within the limit, the row is a bad record and reading continues behind the line in which that quote opens.
So a lost quote costs its row, and what it seemed to enclose is read again: each line at most twice.
What splits fields is the recipe's or found (`delimiters`). A first row that reads like data, not like names of columns,
is refused: it would be lost without a word.
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

LONGEST_NAME = 80  # characters of the name of a column; what is longer, or has as many spaces, is a text
MOST_SPACES = 5
SENTENCE_ENDS = (".", "?", "!", "\u3002", "\uff1f", "\uff01")
# A quoted field, or one that does not begin with a quote, and what ends it; over and over, and never back.
WHOLE_FIELDS = r'(?:(?:"(?:[^"]++|"")*+"|[^"{0}\r\n][^{0}\r\n]*+)?+(?:{0}|\r?\n))*+'


def read_csv(reading: Reading) -> Iterator[Record | BadRecord]:
    """Rows as dicts by the header. A bad header is one bad record: without it no row means anything."""
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
            yield reading.refuse(f"{len(row)} fields where the header has {len(header)}", lines.first)
    if lines.error is not None:
        raise lines.error


def _read_rows(lines: _Lines) -> Iterator[list[str] | BadRecord]:
    """Fields of each row, or a bad row; reading starts again after a bad one."""
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
        return f"the header names {', '.join(map(repr, twice))} twice"
    for name in names:
        if len(name) > LONGEST_NAME or name.count(" ") >= MOST_SPACES or name.rstrip().endswith(SENTENCE_ENDS):
            what = f"{name[:30]}…" if len(name) > 30 else name
            return f"the first row reads like data, not like column names ({what!r}): add a header, or rename it"
    others = {"semicolons": ";", "tabs": "\t", "bars": "|", "commas": ","}
    for what, other in others.items():
        if len(names) == 1 and other != delimiter and other in names[0]:
            return f"the header {names[0]!r} holds {what}, but its rows do not split there alike: set delimiter"
    return None


# The number of the first line of a block, and its text; or a line that is too long to be kept.
_Block = tuple[int, bytes | BadRecord]


class _Lines:
    """Lines for `csv.reader`; the blocks of those of the current row are kept, so that they can be read again.

    `bad` is the line, or the size, that keeps a row from going on, `error` what keeps the file from being read on.
    `first` is the number of the row's first line.
    """

    def __init__(self, reading: Reading):
        self.bad: BadRecord | None = None
        self.error: Exception | None = None
        self.first = 1
        self.delimiter = reading.delimiter or sniff_delimiter(reading.span.path, reading.span.format)
        self._reading = reading
        self._blocks = _read_blocks(reading)
        self._again: deque[_Block] = deque()
        self._kept: list[_Block] = []  # from the row's first line on; the last is that of `_lines`
        self._lines: list[str | BadRecord] = []
        self._number = 1  # of the first of `_lines`
        self._next = 0  # of `_lines`
        self._size = 0  # characters of the row

    def begin_row(self) -> None:
        self.first, self._size = self._number + self._next, 0
        if len(self._kept) > 1:
            del self._kept[:-1]

    def read(self) -> Iterator[str]:
        """Lines with their line feeds, up to a bad one or the end of the file."""
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
        except READ_ERRORS as error:  # raised when what came before has been read
            self.error, block = error, None
        if block is not None:
            self._kept.append(block)
            self._open(block, 0)
        return block is not None

    def _open(self, block: _Block, start: int) -> None:
        self._number, self._lines, self._next = block[0], _decode(block, self._reading), start

    def refuse_row(self, error: str) -> BadRecord:
        """The row as a bad record; reading continues after the line in which its quote opens."""
        text = "".join(self._take_row())
        whole = re.match(WHOLE_FIELDS.format(re.escape(self.delimiter)), text)
        end = whole.end() if whole else 0
        if text[end : end + 1] != '"':  # the last line is at fault, and no other was taken for more than it is
            return self.bad or self._refuse(error)
        opened = self.first + text.count("\n", 0, end)
        quote = "the quote that opens here" if opened == self.first else f"the quote that opens in line {opened}"
        self._go_back(opened + 1)
        if self.bad is None:
            is_open = "end of data" in error
            return self._refuse(f"{quote} is {'never closed' if is_open else 'closed where no field ends'}")
        if self.bad.number > self.first:
            return self._refuse(f"{quote} is not closed before line {self.bad.number}, which cannot be read")
        return self._reading.refuse(f"{self.bad.reason}, or close {quote}", self.first)

    def _refuse(self, fault: str) -> BadRecord:
        return self._reading.refuse(f"malformed {self._reading.span.format.upper()} ({fault})", self.first)

    def _take_row(self) -> Iterator[str]:
        """The text of the row so far, block by block."""
        for number, data in self._kept:
            is_last = number == self._number
            lines = self._lines[: self._next] if is_last else _decode((number, data), self._reading)
            yield "".join(line for line in lines[max(0, self.first - number) :] if isinstance(line, str))

    def _go_back(self, number: int) -> None:
        """To a line of the row, or the one behind its last."""
        while number < self._number:
            self._again.appendleft(self._kept.pop())
            self._open(self._kept[-1], 0)
        self._next = number - self._number


def _read_blocks(reading: Reading) -> Iterator[_Block]:
    for item in read_line_blocks(reading):
        yield (item.number, item) if isinstance(item, BadRecord) else (item[0], b"\n".join(item[1]))


def _decode(block: _Block, reading: Reading) -> list[str | BadRecord]:
    """Lines with their line feeds: decoded together where none of them is bad."""
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
