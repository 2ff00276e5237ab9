"""Documents to rows of at most `seq_len` tokens, as arrays of pieces; nothing is copied.

`best_fit`: best-fit-decreasing bin packing of whole documents over a histogram of lengths. All documents of one
length are placed at once, so the cost is O(n) for sorting plus (distinct lengths x distinct gaps); the rows are those
of the plain one-at-a-time algorithm, except for which of equally full rows takes which of equally long documents.
`wrapped`: one stream in seeded order, cut every `seq_len` tokens; no padding but in the last row.
`none`: a document a row.

No piece attends to another: each restarts its positions. A piece in which no token carries loss is left out and
counted, since the first token of a piece is never predicted and a row of such pieces would have an undefined loss.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.options import LongDocuments, Packing
from data_prep.store import DocumentTable
from training.data.order import permute

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Pieces:
    """Piece i is tokens [start[i], start[i] + length[i]) of document[i]; all of shape (pieces,)."""

    document: Ints
    start: Ints
    length: Ints

    def take(self, chosen: NDArray[np.bool_] | Ints) -> "Pieces":
        return Pieces(self.document[chosen], self.start[chosen], self.length[chosen])


@dataclass(frozen=True)
class RowPlan:
    """Row r is pieces [row_offsets[r], row_offsets[r + 1]). Counts are of documents; silent ones of pieces."""

    pieces: Pieces
    row_offsets: Ints
    split: int = 0
    truncated: int = 0
    dropped: int = 0
    silent: int = 0

    @property
    def num_rows(self) -> int:
        return len(self.row_offsets) - 1

    @property
    def num_tokens(self) -> int:
        return int(self.pieces.length.sum())


def plan_rows(
    table: DocumentTable, documents: Ints, seq_len: int, packing: Packing, long_documents: LongDocuments, seed: int
) -> RowPlan:
    """Rows for the given document numbers of a table (a number may repeat)."""
    if packing == "wrapped":
        return _plan_wrapped(table, documents, seq_len, seed)
    pieces, counts = cut_long(documents, table.lengths, seq_len, long_documents)
    audible = ~find_silent(pieces, table)
    pieces = pieces.take(audible)
    counts["silent"] = int((~audible).sum())
    if packing == "none":
        return RowPlan(pieces, np.arange(len(pieces.length) + 1), **counts)
    rows, num_rows = pack_best_fit(pieces.length, seq_len)
    return RowPlan(pieces.take(np.argsort(rows, kind="stable")), _offsets(rows, num_rows), **counts)


def _offsets(rows: Ints, num_rows: int) -> Ints:
    return np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=num_rows))]).astype(np.int64)


def cut_long(
    documents: Ints, table_lengths: NDArray[np.int32], seq_len: int, policy: LongDocuments
) -> tuple[Pieces, dict[str, int]]:
    """Pieces of at most `seq_len` tokens; documents over it are split, truncated or dropped, and counted."""
    lengths = table_lengths[documents].astype(np.int64)
    is_long = lengths > seq_len
    num_long = int(is_long.sum())
    if policy == "drop":
        documents, lengths = documents[~is_long], lengths[~is_long]
        return Pieces(documents, np.zeros_like(lengths), lengths), {"dropped": num_long}
    if policy == "truncate":
        return Pieces(documents, np.zeros_like(lengths), np.minimum(lengths, seq_len)), {"truncated": num_long}
    num_pieces = -(-lengths // seq_len)
    owner = np.repeat(np.arange(len(documents)), num_pieces)
    start = (np.arange(len(owner)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)) * seq_len
    return Pieces(documents[owner], start, np.minimum(lengths[owner] - start, seq_len)), {"split": num_long}


def find_silent(pieces: Pieces, table: DocumentTable) -> NDArray[np.bool_]:
    """Pieces none of whose tokens after the first carries loss, shape (pieces,)."""
    silent = pieces.length < 2
    for index in np.flatnonzero(table.has_loss_runs[pieces.document] & ~silent):
        runs = table.loss_runs(int(pieces.document[index]))
        first, end = pieces.start[index] + 1, pieces.start[index] + pieces.length[index]
        silent[index] = runs is not None and not ((runs[::2] < end) & (runs[1::2] > first)).any()
    return silent


def pack_best_fit(lengths: Ints, capacity: int) -> tuple[Ints, int]:
    """Row of each piece, shape (pieces,), and the number of rows. Lengths must be in [1, capacity]."""
    rows = np.empty(len(lengths), np.int64)
    sortable = lengths.astype(np.uint16) if capacity < 2**16 else lengths  # 16-bit keys are sorted by radix
    order = np.argsort(sortable, kind="stable")[::-1]
    histogram = np.bincount(lengths, minlength=1)
    gaps = _Gaps(capacity)
    begin = 0
    for length in np.flatnonzero(histogram)[::-1].tolist():
        count = int(histogram[length])
        rows[order[begin : begin + count]] = gaps.place(length, count)
        begin += count
    return rows, gaps.num_rows


class _Gaps:
    """Rows by the room that is left in them."""

    def __init__(self, capacity: int):
        self.num_rows = 0
        self._capacity = capacity
        self._rooms: list[int] = []  # those with rows, ascending
        self._rows: dict[int, list[Ints]] = {}

    def place(self, length: int, count: int) -> Ints:
        """Rows for `count` pieces of one length, tightest first.

        The tightest row keeps being the tightest until it is too full for another piece of this length, so a row
        with room r takes floor(r / length) of them in a run.
        """
        placed: list[Ints] = []
        while count:
            position = bisect_left(self._rooms, length)
            room = self._rooms[position] if position < len(self._rooms) else None
            each = (room or self._capacity) // length
            rows = self._open(-(-count // each)) if room is None else self._take(room, -(-count // each))
            filled = np.repeat(rows, each)[:count]
            room = room or self._capacity
            full, rest = divmod(len(filled), each)
            self._put(room - each * length, rows[:full])
            if rest:
                self._put(room - rest * length, rows[full:])
            placed.append(filled)
            count -= len(filled)
        return np.concatenate(placed)

    def _open(self, count: int) -> Ints:
        self.num_rows += count
        return np.arange(self.num_rows - count, self.num_rows)

    def _take(self, room: int, count: int) -> Ints:
        taken: list[Ints] = []
        stack = self._rows[room]
        while count and stack:
            rows = stack.pop()
            if len(rows) > count:
                stack.append(rows[count:])
                rows = rows[:count]
            taken.append(rows)
            count -= len(rows)
        if not stack:
            del self._rows[room]
            self._rooms.remove(room)
        return np.concatenate(taken)

    def _put(self, room: int, rows: Ints) -> None:
        if not room or not len(rows):
            return
        if room not in self._rows:
            insort(self._rooms, room)
            self._rows[room] = []
        self._rows[room].append(rows)


def _plan_wrapped(table: DocumentTable, documents: Ints, seq_len: int, seed: int) -> RowPlan:
    documents = documents[permute(np.arange(len(documents)), len(documents), (seed, 0))]
    ends = np.cumsum(table.lengths[documents], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.union1d(ends, np.arange(0, total + 1, seq_len))
    cuts = cuts[cuts <= total]
    begin, end = cuts[:-1], cuts[1:]
    owner = np.searchsorted(ends, begin, side="right")
    starts = ends - table.lengths[documents]
    pieces = Pieces(documents[owner], begin - starts[owner], end - begin)
    rows = begin // seq_len
    silent = find_silent(pieces, table)
    audible = np.bincount(rows, weights=~silent) > 0
    _, renumbered = np.unique(rows[audible[rows]], return_inverse=True)
    split = int((np.bincount(owner, minlength=len(documents)) > 1).sum())
    return RowPlan(pieces.take(audible[rows]), _offsets(renumbered, int(audible.sum())), split=split)
