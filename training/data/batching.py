"""Which rows a micro-batch holds, and where the stream stands after it.

A *round* is one micro-batch on each rank. Both ways of batching cut the one stream of `order.py`, so the rows of an
optimizer step do not depend on how many ranks or workers share them, and a position taken at the end of a round is all
that another launch needs: other ranks and another micro-batch continue from there, no row repeated or skipped. A batch
runs on into the next epoch where an epoch ends: every step is full and no row is dropped.

| | rows of a micro-batch | length of an epoch |
|---|---|---|
| `FixedBatches` | always `micro_batch_size` | known |
| `BudgetBatches` | as many as fit: rows x padded width <= `max_tokens` | counted, about 1 s for 10 M rows |

A token budget takes sorted windows from the longest row down, so rows of a batch are about equally long, and the
batches of a window come in random order. Its batches, and so its positions, belong to one budget.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import UserError
from training.data.batch import padded_width
from training.data.order import WINDOW, Ints, RowOrder, Windows

ROWS_AT_A_TIME = 4096
WINDOWS_AT_A_TIME = 64


@dataclass(frozen=True)
class RankBatch:
    """Rows of this rank's next micro-batch; `end`: position of the stream after the round."""

    rows: list[int]
    end: int


class Batching(Protocol):
    """How a stream of rows is cut into micro-batches."""

    num_rows: int

    def cut(self, position: int, rank: int, world_size: int) -> Iterator[RankBatch]:
        """The micro-batches of a rank from `position` on, without end."""
        ...

    def count_rounds(self, begin: int, end: int, world_size: int) -> float:
        """Rounds between two positions; the last one may be broken."""
        ...


class FixedBatches:
    """`micro_batch_size` rows each: rank r's are next to each other, after those of rank r - 1."""

    def __init__(self, order: RowOrder, micro_batch_size: int):
        self.num_rows = order.num_rows
        self._order = order
        self._size = micro_batch_size

    def cut(self, position: int, rank: int, world_size: int) -> Iterator[RankBatch]:
        """Batches of this rank from `position` on: equally many rows each."""
        stride = self._size * world_size
        rounds = max(1, ROWS_AT_A_TIME // self._size)
        mine = rank * self._size + np.arange(self._size)
        while True:
            positions = position + stride * np.arange(rounds)[:, None] + mine
            for rows in self._order.rows_at(positions.ravel()).reshape(rounds, -1).tolist():
                position += stride
                yield RankBatch(rows, position)

    def count_rounds(self, begin: int, end: int, world_size: int) -> float:
        """Rounds of batches between two positions."""
        return (end - begin) / (self._size * world_size)


class BudgetBatches:
    """As many rows as `max_tokens` hold when padded to the longest of them, rounded up to `multiple`.

    Raises UserError when one row alone is over the budget.
    """

    def __init__(self, lengths: NDArray[np.integer], seed: int, *, max_tokens: int, multiple: int, seq_len: int):
        self.num_rows = len(lengths)
        self._windows = Windows(lengths, seed)
        self._widths = padded_width(lengths.astype(np.int64), multiple, seq_len)
        self._max_tokens = max_tokens
        widest = int(self._widths.max(initial=0))
        if widest > max_tokens:
            raise UserError(
                f"data.max_tokens_per_batch = {max_tokens}: the longest row takes {widest} tokens when padded: "
                f"raise it to {widest} or more, or lower data.seq_len"
            )

    def cut(self, position: int, rank: int, world_size: int) -> Iterator[RankBatch]:
        """Batches of this rank from `position` on: at most so many tokens each."""
        batches = self._batches(position)
        while True:
            group = list(islice(batches, world_size))
            yield RankBatch(group[rank][0].tolist(), group[-1][1])

    def count_rounds(self, begin: int, end: int, world_size: int) -> float:
        """Rounds of batches between two positions."""
        first, last = self._windows.find(np.array([begin, end - 1]))[0].tolist()
        count = self._count_windows(first, last)
        return (count + self._count_before(last, end) + 1 - self._count_before(first, begin + 1)) / world_size

    def _count_before(self, window: int, position: int) -> int:
        """Batches of a window that end before a position."""
        ends = self._windows.begin(window) + np.cumsum([len(rows) for rows in self._cut_window(window)])
        return int(np.searchsorted(ends, position))

    def _count_windows(self, first: int, last: int) -> int:
        """Batches of the windows [first, last), by how many rows of each width a window has: nothing is sorted."""
        by_width = np.bincount(self._widths)
        widths = np.flatnonzero(by_width)[::-1]
        classes = np.zeros(len(by_width), np.int32)
        classes[widths] = np.arange(len(widths))
        classes = classes[self._widths]
        count = 0
        while first < last:
            rest_of_epoch = self._windows.per_epoch - first % self._windows.per_epoch
            chosen = min(WINDOWS_AT_A_TIME, last - first, rest_of_epoch)
            found = classes[self._windows.rows(first, chosen)]
            keys = np.arange(len(found)) // WINDOW * len(widths) + found
            table = np.bincount(keys, minlength=chosen * len(widths)).reshape(chosen, -1)
            count += _count_batches(table, self._max_tokens // widths)
            first += chosen
        return count

    def _batches(self, position: int) -> Iterator[tuple[Ints, int]]:
        """Rows of each batch that ends behind a position, and the position after it, without end."""
        window = int(self._windows.find(np.array([position]))[0][0])
        end = self._windows.begin(window)
        while True:
            for rows in self._cut_window(window):
                end += len(rows)
                if end > position:
                    yield rows, end
            window += 1

    def _cut_window(self, window: int) -> list[Ints]:
        rows = self._windows.sorted_rows(window)
        widths = self._widths[rows].tolist()
        begins = [0]
        while (begin := begins[-1] + self._max_tokens // widths[begins[-1]]) < len(rows):
            begins.append(begin)
        batches = np.split(rows, begins[1:])
        return [batches[index] for index in self._windows.shuffle(window, len(batches))]


def _count_batches(table: Ints, capacities: Ints) -> int:
    """Batches of windows with `table[w, c]` rows of class c, widest first, of which a batch that begins with one holds
    `capacities[c]`."""
    count = 0
    room = np.zeros(len(table), np.int64)  # in the batch under way in each window
    for rows, capacity in zip(table.T, capacities.tolist(), strict=True):
        left = np.maximum(rows - room, 0)
        begun = -(-left // capacity)
        room = np.maximum(room - rows, 0) + begun * capacity - left
        count += int(begun.sum())
    return count
