"""The order of rows: a pure function of (seed, position), computed in place.

A stream is the epochs one after the other, each all rows once in an order of its own: position p is row p % num_rows
of epoch p // num_rows. A keyed permutation (a Feistel network with cycle walking) maps any position to its row without
laying out the epoch: no memory, no random state to save, the same on every rank, worker, machine and library version.
Where a run stands is one integer, and resuming at row 10 million costs what resuming at row 0 does.

Grouped by length, a window of `WINDOW` positions is sorted by length, and blocks of the sorted window come in random
order: rows near each other are about equally long, and a position still costs no more than its window (some 3 ms).
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_prep.hash_mixing import GOLDEN_RATIO, mix

ROUNDS = 6
WINDOW = 8192
BLOCK = 64

Ints = NDArray[np.int64]


@lru_cache(maxsize=8)
def _round_tables(key: tuple[int, ...], half: int) -> Ints:
    """What each round does to every right half, shape (ROUNDS, 2^half). Small: 2^13 for 67 M rows."""
    state = np.zeros(1, np.uint64)
    for word in key:
        state = mix(state + GOLDEN_RATIO + np.uint64(word))
    keys = mix(state + GOLDEN_RATIO * np.arange(1, ROUNDS + 1, dtype=np.uint64))
    return (mix(np.arange(1 << half, dtype=np.uint64) + keys[:, None]) & np.uint64((1 << half) - 1)).astype(np.int64)


def permute(positions: Ints, size: int, key: tuple[int, ...]) -> Ints:
    """Images of `positions` under the permutation of range(size) that `key` names.

    The network permutes the next even power of two; values that fall outside are sent through again, on average less
    than four times.
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    tables = _round_tables(key, half)
    values = _encipher(np.asarray(positions, np.int64), tables, half)
    while len(outside := np.flatnonzero(values >= size)):
        values[outside] = _encipher(values[outside], tables, half)
    return values


def _encipher(values: Ints, tables: Ints, half: int) -> Ints:
    left, right = values >> half, values & ((1 << half) - 1)
    for table in tables:
        left, right = right, left ^ table[right]
    return (left << half) | right


class RowOrder(Protocol):
    """The rows of a stream by position."""

    num_rows: int

    def rows_at(self, positions: Ints) -> Ints:
        """Rows at these positions of the stream, which may lie in different epochs; shape as given."""
        ...


def _split_at(positions: Ints, keys: Ints) -> Iterator[tuple[int, slice]]:
    """Runs of equal keys, as (key, where)."""
    cuts = np.flatnonzero(np.diff(keys)) + 1
    for begin, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(positions)], strict=True):
        yield int(keys[begin]), slice(begin, end)


class ShuffledRows:
    """Every epoch in a random order of its own."""

    def __init__(self, num_rows: int, seed: int):
        self.num_rows = num_rows
        self.seed = seed

    def rows_at(self, positions: Ints) -> Ints:
        """The rows at these positions of the endless order."""
        epochs, places = np.divmod(positions, self.num_rows)
        rows = np.empty_like(places)
        for epoch, where in _split_at(positions, epochs):
            rows[where] = permute(places[where], self.num_rows, (self.seed, epoch))
        return rows


class Windows:
    """The windows of a shuffled stream, longest row first: what length grouping and token budgets are made of.

    `lengths` are those of all rows, shape (num_rows,). Windows do not cross epochs: the last of each is shorter.
    """

    def __init__(self, lengths: NDArray[np.integer], seed: int):
        self.lengths = lengths
        self.seed = seed
        self.num_rows = len(lengths)
        self.per_epoch = -(-self.num_rows // WINDOW)

    def find(self, positions: Ints) -> tuple[Ints, Ints]:
        """The window of each position, counted over all epochs, and its place there."""
        epochs, places = np.divmod(positions, self.num_rows)
        windows, places = np.divmod(places, WINDOW)
        return epochs * self.per_epoch + windows, places

    def begin(self, window: int) -> int:
        """Position at which a window begins."""
        epoch, index = divmod(window, self.per_epoch)
        return epoch * self.num_rows + index * WINDOW

    def rows(self, window: int, count: int = 1) -> Ints:
        """The rows of a window, or of several of one epoch, in random order."""
        epoch, index = divmod(window, self.per_epoch)
        places = np.arange(index * WINDOW, min((index + count) * WINDOW, self.num_rows))
        return permute(places, self.num_rows, (self.seed, epoch))

    def sorted_rows(self, window: int) -> Ints:
        """The rows of a window by their length."""
        rows = self.rows(window)
        return rows[np.argsort(-self.lengths[rows].astype(np.int64), kind="stable")]

    def shuffle(self, window: int, count: int) -> Ints:
        """A random order of `count` things of a window."""
        return permute(np.arange(count), count, (self.seed, *divmod(window, self.per_epoch)))


class LengthGroupedRows:
    """Rows near each other are about equally long: blocks of sorted windows, in random order."""

    def __init__(self, lengths: NDArray[np.integer], seed: int):
        self.num_rows = len(lengths)
        self._windows = Windows(lengths, seed)
        self._latest: tuple[int, Ints] | None = None

    def rows_at(self, positions: Ints) -> Ints:
        """The rows at these positions of the endless order."""
        windows, places = self._windows.find(positions)
        rows = np.empty_like(places)
        for window, where in _split_at(positions, windows):
            rows[where] = self._rows_of(window)[places[where]]
        return rows

    def _rows_of(self, window: int) -> Ints:
        if self._latest is None or self._latest[0] != window:
            rows = self._windows.sorted_rows(window)
            blocks = np.split(rows, range(BLOCK, len(rows), BLOCK))
            order = self._windows.shuffle(window, len(blocks))
            self._latest = window, np.concatenate([blocks[index] for index in order])
        return self._latest[1]
