"""Which reader of a stream gets which rows: a pure function of a few integers, so readers need not communicate.

A stream is an endless sequence of *units* (the parts of the first pass in its order, those of the second, …). The rows
of a unit, in their order, are dealt into `slices`: row n is in slice n % slices. Unit u, slice s is *item*
u * slices + s of the stream, and item i belongs to reader i % readers, who does its items in order, row by row. So the
one position (item, rows of it done) of each reader says what has been done: a `Deal`. Its size does not grow with the
data. There is one slice as long as there are as many units as readers; with fewer, each unit is read by several.

Another number of readers begins a new deal over the rows that the earlier ones left, so none is repeated or skipped.
An earlier deal is forgotten when all units that it has touched are done.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Position = tuple[int, int]


@dataclass(frozen=True)
class Deal:
    """`positions[r]`: the item that reader r is at, and how many rows of it are done."""

    slices: int
    positions: tuple[Position, ...]

    @property
    def readers(self) -> int:
        """Number of readers."""
        return len(self.positions)

    @property
    def first_unit(self) -> int:
        """The first unit that may have rows left."""
        return min(item for item, _ in self.positions) // self.slices

    @property
    def last_unit(self) -> int:
        """The last unit that may have been touched."""
        return max(item for item, _ in self.positions) // self.slices

    def has_done_unit(self, unit: int) -> bool:
        """Whether no row of this unit is left."""
        items = range(unit * self.slices, (unit + 1) * self.slices)
        return all(item < self.positions[item % self.readers][0] for item in items)

    def find_done(self, unit: int, numbers: Ints) -> NDArray[np.bool_]:
        """Which of the rows of a unit are done, by their numbers among those that were dealt; shape (rows,)."""
        items = unit * self.slices + numbers % self.slices
        at_item, at_row = np.array(self.positions)[items % self.readers].T
        return (items < at_item) | ((items == at_item) & (numbers // self.slices < at_row))

    def with_positions(self, positions: dict[int, Position]) -> "Deal":
        """The same deal, some readers having moved on."""
        return Deal(self.slices, tuple(positions.get(r, position) for r, position in enumerate(self.positions)))


def deal_to(readers: int, num_units: int, earlier: Sequence[Deal] = ()) -> list[Deal]:
    """Deals for this number of readers over what earlier ones left. The last is under way; the same number goes on
    with it, bit for bit. `num_units` is that of a pass."""
    slices = -(-readers // num_units)
    first = earlier[-1].first_unit if earlier else 0
    kept = [deal for deal in earlier[:-1] if deal.last_unit >= first] + list(earlier[-1:])
    if kept and kept[-1].readers == readers and kept[-1].slices == slices:
        return kept
    begin = first * slices
    return [*kept, Deal(slices, tuple((begin + (reader - begin) % readers, 0) for reader in range(readers)))]


def list_items(deals: Sequence[Deal], reader: int) -> Iterator[Position]:
    """The items of a reader from where it stands, without end, with the rows of each that are done. Items of units
    that earlier deals finished are passed over."""
    *earlier, deal = deals
    item, row = deal.positions[reader]
    while True:
        if not any(other.has_done_unit(item // deal.slices) for other in earlier):
            yield item, row
        item, row = item + deal.readers, 0


class ItemRows:
    """Chooses the rows of one item as those of its unit come by, some at a time."""

    def __init__(self, deals: Sequence[Deal], item: int, row: int):
        *self._earlier, self._deal = deals
        self._unit, self._slice = divmod(item, self._deal.slices)
        self._row = row
        self._seen = [0] * len(deals)

    def take(self, num_rows: int) -> tuple[Ints, Ints]:
        """Of the next rows of the unit, those of this item that are left, and the number of each within the item."""
        rows = np.arange(num_rows)
        for index, deal in enumerate(self._earlier):
            rows = rows[~deal.find_done(self._unit, self._count(index, len(rows)))]
        numbers = self._count(-1, len(rows))
        mine = (numbers % self._deal.slices == self._slice) & (numbers // self._deal.slices >= self._row)
        return rows[mine], numbers[mine] // self._deal.slices

    @property
    def is_new(self) -> bool:
        """Whether what stands between the rows so far and the next ones has not been passed by an earlier session."""
        return self._row <= max(0, -(-(self._seen[-1] - self._slice) // self._deal.slices))

    def _count(self, index: int, num_rows: int) -> Ints:
        begin = self._seen[index]
        self._seen[index] += num_rows
        return np.arange(begin, begin + num_rows)
