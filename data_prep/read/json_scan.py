"""Finds where the elements or values of a JSON file end, with a scan that recognises only strings and brackets.

The scan works on one block of the file at a time, with array operations, and can resume at any byte. So its memory is
one block, and its speed is 120 to 250 MB/s for any text. It does not validate the text between the ends.
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
    """Yield pieces of the elements of an array, each with the byte that ends the element: a comma or a bracket.

    The byte is b"" if the element continues in the next piece. After the bracket that ends the array, the remaining
    bytes follow. The blocks start after the opening bracket.
    """
    scan = _Scan()
    for block in blocks:
        start = 0
        for end in scan.find_ends(block) if scan.depth else ():
            yield block[start:end], block[end : end + 1]
            start = end + 1
        yield block[start:], b""


def split_values(blocks: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Yield pieces of consecutive values, each with whether its value ends there; white space may follow the last."""
    scan = _Scan(depth=0)
    for block in blocks:
        start = 0
        for end in scan.find_closings(block):
            yield block[start : end + 1], True
            start = end + 1
        yield block[start:], False


class _Scan:
    """Finds, block by block, where elements of an array or consecutive values end; `depth` counts open brackets."""

    def __init__(self, depth: int = 1) -> None:
        self.depth = depth
        self._in_string = 0
        self._before = b" "  # put before the next block: with a backslash if the last block ends in an unescaped one

    def find_ends(self, block: bytes) -> list[int]:
        """Positions of the commas between elements and of the bracket that ends the array, which sets `depth` to 0."""
        kinds, ends, depths = self._find_brackets(block)
        closing = np.flatnonzero(depths == 0)[:1]
        last = int(closing[0]) + 1 if len(closing) else len(depths)
        if last:
            self.depth = int(depths[last - 1])
        return ends[:last][((depths == 1) & (kinds == COMMA))[:last] | (depths == 0)[:last]].tolist()

    def find_closings(self, block: bytes) -> list[int]:
        """Positions of the brackets that close the last open bracket."""
        kinds, ends, depths = self._find_brackets(block)
        if len(depths):
            self.depth = int(depths[-1])
        return ends[(depths == 0) & (kinds == CLOSING)].tolist()

    def _find_brackets(self, block: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        """Codes and positions of the commas and brackets outside of strings, and the depth after each."""
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
    """Which quotes follow an odd number of backslashes; takes one step for each backslash of the longest run."""
    escaped = np.zeros(len(quotes), np.bool_)
    running = np.flatnonzero(data[quotes - 1] == BACKSLASH)
    length = 1
    while len(running):
        escaped[running] ^= True
        length += 1
        running = running[data[quotes[running] - length] == BACKSLASH]
    return escaped
