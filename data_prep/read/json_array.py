"""A JSON array as a stream: its elements one by one, in memory bounded by the largest of them.

1. A scan finds where each element ends (`json_scan`).
2. Each element is parsed by orjson alone. So what is strict there is strict here as in JSONL (no NaN, no lone
   surrogate, no control character in a string), and a fault within an element costs that element and no other. A
   lost quote or bracket swallows what follows it, up to the end of the file; the one bad record names where it began.
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
    """What the elements lie in: a whole file (`under` is None), or what is under a key (empty: the outer object); an
    array, an object of whose members the values are the records, or nothing: values in a row."""

    under: str | None = None
    is_object: bool = False
    in_row: bool = False


def read_elements(
    reading: Reading, elements: Iterator[tuple[bytes, bytes]], line: int, frame: Frame = Frame()
) -> Iterator[Record | BadRecord]:
    """Records from behind the bracket that opens the frame and stands on `line`; elements as `split_elements` has."""
    place = f"{frame.under!r}, line" if frame.under else "line"
    closing = b"}" if frame.is_object else b"]"
    pieces: list[bytes] = []
    size, end = 0, b""
    for piece, end in elements:
        if not size:  # blanks before an element are none of it
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
        reason = "malformed JSON (this never ends: a quote or bracket is missing, or the file is cut short)"
        yield reading.refuse(reason, reading.number + 1)
    elif end != closing or (frame.under is None and any(piece.strip() for piece, _ in elements)):
        fault = f"the array ends with {end.decode()}" if end != closing else "more stands behind the end of the array"
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
