"""The order of rows: a pure function of (seed, position), computed in place.

A stream is the epochs one after the other, each all rows once in an order of its own: position p is row p % num_rows
of epoch p // num_rows. A keyed permutation (a Feistel network with cycle walking) maps any position to its row without
laying out the epoch: no memory, no random state to save, the same on every rank, worker, machine and library version.
Where a run stands is one integer, and going on at row 10 million costs what going on at row 0 does.

Grouped by length, a window of `WINDOW` positions is sorted by length, and blocks of the sorted window come in random
order: rows near each other are about equally long, and a position still costs no more than its window (some 3 ms).
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6
WINDOW = 8192
BLOCK = 64
MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))

Ints = NDArray[np.int64]


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014): each input bit flips half of the output bits."""
    values = (values ^ (values >> np.uint64(30))) * MIX[1]
    values = (values ^ (values >> np.uint64(27))) * MIX[2]
    return values ^ (values >> np.uint64(31))


def _round_keys(key: tuple[int, ...]) -> NDArray[np.uint64]:
    state = np.zeros(1, np.uint64)
    for word in key:
        state = _mix(state + MIX[0] + np.uint64(word))
    return _mix(state + MIX[0] * np.arange(1, ROUNDS + 1, dtype=np.uint64))


def permute(positions: Ints, size: int, key: tuple[int, ...]) -> Ints:
    """Images of `positions` under the permutation of range(size) that `key` names.

    The network permutes the next even power of two; values that fall outside are sent through again, on average less
    than four times.
    """
    half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = _round_keys(key)
    values = np.asarray(positions).astype(np.uint64)
    outside = np.arange(len(values))
    while len(outside):
        left, right = values[outside] >> half, values[outside] & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right + round_key) & mask)
        values[outside] = (left << half) | right
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


class RowOrder(Protocol):
    """The rows of a stream by position. `name` tells orders apart."""

    num_rows: int
    name: str

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
        self.name = f"{num_rows} rows shuffled by seed {seed}"

    def rows_at(self, positions: Ints) -> Ints:
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

    def sorted_rows(self, window: int) -> Ints:
        epoch, index = divmod(window, self.per_epoch)
        places = np.arange(index * WINDOW, min((index + 1) * WINDOW, self.num_rows))
        rows = permute(places, self.num_rows, (self.seed, epoch))
        return rows[np.argsort(-self.lengths[rows].astype(np.int64), kind="stable")]

    def shuffle(self, window: int, count: int) -> Ints:
        """A random order of `count` things of a window."""
        return permute(np.arange(count), count, (self.seed, *divmod(window, self.per_epoch)))


class LengthGroupedRows:
    """Rows near each other are about equally long: blocks of sorted windows, in random order."""

    def __init__(self, lengths: NDArray[np.integer], seed: int):
        self.num_rows = len(lengths)
        self.name = f"{len(lengths)} rows grouped by length, seed {seed}"
        self._windows = Windows(lengths, seed)
        self._latest: tuple[int, Ints] | None = None

    def rows_at(self, positions: Ints) -> Ints:
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
