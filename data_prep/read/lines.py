"""Reads lines of JSONL and plain text as records, and text files as one document each.

Lines come from blocks of BLOCK_BYTES, so one `split` serves many lines. Memory is bounded by the longest line, up to
`data.max_record_bytes`; of a longer line only the size is kept, and reading continues after it.
A NUL byte makes a line or a text file a bad record. (`\\u0000` in a JSON string is legal, and kept.)
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import orjson

from data_prep.read.corpus import read_corpus_documents
from data_prep.read.files import (
    BLOCK_BYTES,
    BOM,
    BadRecord,
    Reading,
    Record,
    find_text_fault,
    one_line,
    open_binary,
    read_blocks,
    read_whole,
)  # fmt: skip


def read_line_blocks(reading: Reading) -> Iterator[tuple[int, list[bytes]] | BadRecord]:
    """Yield lines of the span without line feeds, many at a time, with the number of the first of them."""
    pieces: list[bytes] = []  # of an incomplete line; empty once the line is over the limit
    size = 0
    with open_binary(reading.span.path) as file:
        for block in _read_span(file, reading):
            lines = block.split(b"\n")
            size += len(lines[0])
            if len(lines) == 1:
                pieces.append(block)
                if size > reading.limit:
                    pieces.clear()
                continue
            lines[0] = b"".join([*pieces, lines[0]])
            tail = lines.pop()
            yield from _check_first(lines, size, reading)
            pieces, size = [tail], len(tail)
    if size:
        yield from _check_first([b"".join(pieces)], size, reading)


def _check_first(lines: list[bytes], size: int, reading: Reading) -> Iterator[tuple[int, list[bytes]] | BadRecord]:
    """Yield the lines; refuse the first if it is over the limit. Blocks are too small for others to be."""
    if reading.number == 0:
        lines[0] = lines[0].removeprefix(BOM)
    if size > reading.limit:
        yield reading.refuse(reading.explain_size("a line", size), reading.number + 1)
        reading.number += 1
        del lines[0]
    if lines:
        yield reading.number + 1, lines
        reading.number += len(lines)


def _read_span(file: BinaryIO, reading: Reading) -> Iterator[bytes]:
    span, size = reading.span, min(BLOCK_BYTES, reading.limit)
    reading.number = span.first_line - 1
    if span.start:
        file.seek(span.start)
    if span.end is None:
        yield from read_blocks(file, size)
        return
    position = span.start
    while position < span.end and (block := file.read(min(size, span.end - position))):
        position += len(block)
        yield block


def read_jsonl(reading: Reading) -> Iterator[Record | BadRecord]:
    """Read one record from each line."""
    path, loads = reading.span.path, orjson.loads
    for item in read_line_blocks(reading):
        if isinstance(item, BadRecord):
            yield item
            continue
        for number, line in enumerate(item[1], item[0]):
            try:
                value = loads(line)
            except orjson.JSONDecodeError as error:
                if line and not line.isspace():
                    yield reading.refuse(find_json_fault(line, error), number)
                continue
            yield Record(value, path, "line", number)


def find_json_fault(data: bytes, error: orjson.JSONDecodeError) -> str:
    """Explain what is wrong with a JSON text, and at which byte or column."""
    fault = find_text_fault(data)
    return fault[1] if fault else f"malformed JSON ({error.msg}, column {error.colno})"


def read_text_lines(reading: Reading) -> Iterator[Record | BadRecord]:
    """Read one document from each line."""
    for item in read_line_blocks(reading):
        if isinstance(item, BadRecord):
            yield item
            continue
        for number, line in enumerate(item[1], item[0]):
            if fault := find_text_fault(line):
                yield reading.refuse(fault[1], number)
            elif line and not line.isspace():
                yield Record(line.rstrip(b"\r").decode(), reading.span.path, "line", number)


def read_text(reading: Reading) -> Iterator[Record | BadRecord]:
    """Read the whole file as one document."""
    data, size = read_whole(reading)
    if size > reading.limit:
        yield reading.refuse(f"{reading.explain_size('a text file', size)}, or set text_unit: line", 1)
        return
    if fault := find_text_fault(data):
        yield reading.refuse(fault[1], 1 + data.count(b"\n", 0, fault[0]))
    elif size:
        yield Record(data.decode(), reading.span.path, "line", 1)


def read_corpus(reading: Reading) -> Iterator[Record | BadRecord]:
    """Read the documents of a file of the embedded corpus."""
    reading.unit = "document"
    path = reading.span.path
    try:
        texts = read_corpus_documents(Path(path))
    except (SyntaxError, UnicodeDecodeError) as error:
        yield BadRecord(path, "line", 1, f"cannot be decoded as Python source ({one_line(error)})")
        return
    for number, text in enumerate(texts, 1):
        yield Record(text, path, "document", number)
