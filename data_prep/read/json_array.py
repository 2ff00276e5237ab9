"""Reads a JSON array as a stream, one element at a time; memory is bounded by the largest element.

1. A scan finds where each element ends (`json_scan`).
2. orjson parses each element separately. So elements obey the same rules as lines of JSONL (no NaN, lone surrogate, or
   control character in a string), and a fault in one element does not affect the others. A missing quote or bracket is
   the exception: everything after it, up to the end of the file, is one bad record, which names where it begins.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import orjson

from data_prep.read.files import BadRecord, Reading, Record
from data_prep.read.lines import find_json_fault

MEMBER_KEY = re.compile(rb'\s*"((?:[^"\\]|\\.)*)"\s*:\s*', re.DOTALL)


@dataclass(frozen=True)
class Frame:
    """What contains the elements.

    under: key that leads to them; "" is the outer object, None the whole file.
    is_object: they are the values of an object instead of the elements of an array.
    in_row: they are consecutive values without a bracket around them.
    """

    under: str | None = None
    is_object: bool = False
    in_row: bool = False


def read_elements(
    reading: Reading, elements: Iterator[tuple[bytes, bytes]], line: int, frame: Frame = Frame()
) -> Iterator[Record | BadRecord]:
    """Parse the elements that `split_elements` yields; the bracket before the first is on line `line`."""
    place = f"{frame.under!r}, line" if frame.under else "line"
    closing = b"}" if frame.is_object else b"]"
    pieces: list[bytes] = []
    size, end = 0, b""
    for piece, end in elements:
        if not size:  # white space before an element does not belong to it
            blanks = len(piece) - len(piece.lstrip())
            line += piece.count(b"\n", 0, blanks)
            piece = piece[blanks:]
            reading.unit = f"{place} {line}, record"
        size += len(piece)
        pieces.append(piece)
        if size > reading.limit:
            pieces.clear()
        line += piece.count(b"\n")
        if not end:
            continue
        if size or ((end == b"," or reading.number) and not frame.in_row):
            reading.number += 1
            yield _parse(reading, pieces, size, frame)
        pieces, size = [], 0
        if end != b",":
            break
    if end in (b"", b","):
        reason = "malformed JSON (the record never ends: a quote or bracket is missing, or the file is truncated)"
        yield reading.refuse(reason, reading.number + 1)
    elif end != closing or (frame.under is None and any(piece.strip() for piece, _ in elements)):
        fault = f"the array ends with {end.decode()}" if end != closing else "more text after the end of the array"
        yield BadRecord(reading.span.path, "line", line, f"malformed JSON ({fault})")


def _parse(reading: Reading, pieces: list[bytes], size: int, frame: Frame) -> Record | BadRecord:
    if size > reading.limit:
        return reading.refuse(reading.explain_size("a record", size))
    data = b"".join(pieces)
    if frame.is_object and (key := MEMBER_KEY.match(data)):
        data = data[key.end() :]
    try:
        return Record(orjson.loads(data), reading.span.path, reading.unit, reading.number)
    except orjson.JSONDecodeError as error:
        return reading.refuse(find_json_fault(data, error))
