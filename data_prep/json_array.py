"""A `.json` file as a stream: the elements of its array one by one, in memory bounded by the largest of them.

1. A scan that knows only strings and brackets finds where each element ends. It works on arrays over a block of the
   file and can go on at any byte, so it holds no more than that: 120 to 250 MB/s, whatever the text.
2. Each element is parsed by orjson alone. So what is strict there is strict here as in JSONL (no NaN, no lone
   surrogate, no control character in a string), and a fault within an element costs that element and no other. A
   lost quote or bracket swallows what follows it, up to the end of the file; the one bad record names where it began.

A file that holds one value instead of an array is one record.
"""

from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
import orjson
from numpy.typing import NDArray

from data_prep.files import BOM, BadRecord, Reading, Record, open_binary, read_blocks
from data_prep.lines import find_json_fault

QUOTE, OPENING, CLOSING, COMMA = 1, 2, 3, 4
BACKSLASH = ord("\\")
CODES = bytes(
    {34: QUOTE, 44: COMMA, 91: OPENING, 93: CLOSING, 123: OPENING, 125: CLOSING}.get(i, 0) for i in range(256)
)
STEPS = np.array([0, 0, 1, -1, 0], np.int64)


def read_json(reading: Reading) -> Iterator[Record | BadRecord]:
    with open_binary(reading.span.path) as file:
        blocks = read_blocks(file)
        line, text = 1, b""
        for block in chain([file.read(len(BOM)).removeprefix(BOM)], blocks):
            text = block.lstrip()
            line += block.count(b"\n", 0, len(block) - len(text))
            if text:
                break
        if text[:1] == b"[":
            yield from _read_array(reading, chain([text[1:]], blocks), line)
        elif text:
            yield from _read_value(reading, chain([text], blocks), line)


def _read_value(reading: Reading, blocks: Iterable[bytes], line: int) -> Iterator[Record | BadRecord]:
    pieces: list[bytes] = []
    size = 0
    for block in blocks:
        size += len(block)
        pieces.append(block)
        if size > reading.limit:
            pieces.clear()
    if size > reading.limit:
        yield reading.refuse(reading.explain_size("a record", size), line)
        return
    data = b"".join(pieces)
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        yield reading.refuse(find_json_fault(data, error), line + error.lineno - 1)
        return
    yield Record(value, reading.span.path, "line", line)


def _read_array(reading: Reading, blocks: Iterable[bytes], line: int) -> Iterator[Record | BadRecord]:
    """Records of an array from behind its bracket, which stands on `line`."""
    elements = _split(blocks)
    pieces: list[bytes] = []
    size, end = 0, b""
    for piece, end in elements:
        if not size:  # blanks before an element are none of it
            blanks = len(piece) - len(piece.lstrip())
            line += piece.count(b"\n", 0, blanks)
            piece = piece[blanks:]
            reading.unit = f"line {line}, record"
        size += len(piece)
        pieces.append(piece)
        if size > reading.limit:
            pieces.clear()
        line += piece.count(b"\n")
        if not end:
            continue
        if size or end == b"," or reading.number:
            reading.number += 1
            yield _parse(reading, pieces, size)
        pieces, size = [], 0
        if end != b",":
            break
    if end in (b"", b","):
        reason = "malformed JSON (this never ends: a quote or bracket is missing, or the file is cut short)"
        yield reading.refuse(reason, reading.number + 1)
    elif end != b"]" or any(piece.strip() for piece, _ in elements):
        fault = f"the array ends with {end.decode()}" if end != b"]" else "more stands behind the end of the array"
        yield BadRecord(reading.span.path, "line", line, f"malformed JSON ({fault})")


def _parse(reading: Reading, pieces: list[bytes], size: int) -> Record | BadRecord:
    if size > reading.limit:
        return reading.refuse(reading.explain_size("a record", size))
    data = b"".join(pieces)
    try:
        return Record(orjson.loads(data), reading.span.path, reading.unit, reading.number)
    except orjson.JSONDecodeError as error:
        return reading.refuse(find_json_fault(data, error))


def _split(blocks: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Pieces of elements with what ends them: a comma, a bracket, or nothing where the element goes on.

    Behind the array's own bracket come the bytes that are left.
    """
    scan = _Scan()
    for block in blocks:
        start = 0
        for end in scan.find_ends(block) if scan.depth else ():
            yield block[start:end], block[end : end + 1]
            start = end + 1
        yield block[start:], b""


class _Scan:
    """Where the elements of an array end, block by block; `depth` counts the brackets that are open."""

    def __init__(self) -> None:
        self.depth = 1
        self._in_string = 0
        self._before = b" "  # stands in front of a block: a backslash too, where the last one leaves its meaning open

    def find_ends(self, block: bytes) -> list[int]:
        """Positions of the commas between elements, and of the bracket that ends the array: then `depth` is 0."""
        data = self._before + block
        codes = np.frombuffer(data.translate(CODES), np.uint8)
        positions = np.flatnonzero(codes)
        kinds = codes[positions]
        quotes = kinds == QUOTE
        quotes[quotes] = ~_find_escaped(np.frombuffer(data, np.uint8), positions[quotes])
        in_string = (np.cumsum(quotes, dtype=np.int32) + self._in_string) & 1
        kept = (in_string == 0) & (kinds != QUOTE)
        kinds, ends = kinds[kept], positions[kept]
        depths = self.depth + np.cumsum(STEPS[kinds])
        closing = np.flatnonzero(depths == 0)[:1]
        last = int(closing[0]) + 1 if len(closing) else len(depths)
        found = ends[:last][((depths == 1) & (kinds == COMMA))[:last] | (depths == 0)[:last]]
        if last:
            self.depth = int(depths[last - 1])
        if len(in_string):
            self._in_string = int(in_string[-1])
        backslashes = len(data) - len(data.rstrip(b"\\"))
        found -= len(self._before)
        self._before = b" \\" if backslashes % 2 else b" "
        return found.tolist()


def _find_escaped(data: NDArray[np.uint8], quotes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which quotes have an odd number of backslashes before them. One step for each backslash of the longest run."""
    escaped = np.zeros(len(quotes), np.bool_)
    running = np.flatnonzero(data[quotes - 1] == BACKSLASH)
    length = 1
    while len(running):
        escaped[running] ^= True
        length += 1
        running = running[data[quotes[running] - length] == BACKSLASH]
    return escaped
