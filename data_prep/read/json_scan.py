"""Where the pieces of a JSON file end, found by a scan that knows only strings and brackets.

It works on arrays over a block of the file and can go on at any byte, so it holds no more than that: 120 to 250 MB/s,
whatever the text. What stands between the ends is not looked at.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

QUOTE, OPENING, CLOSING, COMMA = 1, 2, 3, 4
BACKSLASH = ord("\\")
CODES = bytes(
    {34: QUOTE, 44: COMMA, 91: OPENING, 93: CLOSING, 123: OPENING, 125: CLOSING}.get(i, 0) for i in range(256)
)
STEPS = np.array([0, 0, 1, -1, 0], np.int64)


def split_elements(blocks: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
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


def split_values(blocks: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Pieces of values that stand one after the other, with whether the value ends there; behind the last, blanks."""
    scan = _Scan(depth=0)
    for block in blocks:
        start = 0
        for end in scan.find_closings(block):
            yield block[start : end + 1], True
            start = end + 1
        yield block[start:], False


class _Scan:
    """Where the elements of an array, or values in a row, end, block by block; `depth` counts the open brackets."""

    def __init__(self, depth: int = 1) -> None:
        self.depth = depth
        self._in_string = 0
        self._before = b" "  # stands in front of a block: a backslash too, where the last one leaves its meaning open

    def find_ends(self, block: bytes) -> list[int]:
        """Positions of the commas between elements, and of the bracket that ends the array: then `depth` is 0."""
        kinds, ends, depths = self._find_brackets(block)
        closing = np.flatnonzero(depths == 0)[:1]
        last = int(closing[0]) + 1 if len(closing) else len(depths)
        if last:
            self.depth = int(depths[last - 1])
        return ends[:last][((depths == 1) & (kinds == COMMA))[:last] | (depths == 0)[:last]].tolist()

    def find_closings(self, block: bytes) -> list[int]:
        """Positions of the brackets behind which none is open."""
        kinds, ends, depths = self._find_brackets(block)
        if len(depths):
            self.depth = int(depths[-1])
        return ends[(depths == 0) & (kinds == CLOSING)].tolist()

    def _find_brackets(self, block: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        """Of the commas and brackets outside of strings: what they are, where, and the depth behind each."""
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
        if len(in_string):
            self._in_string = int(in_string[-1])
        backslashes = len(data) - len(data.rstrip(b"\\"))
        ends -= len(self._before)
        self._before = b" \\" if backslashes % 2 else b" "
        return kinds, ends, depths


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
