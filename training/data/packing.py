"""Documents to rows of at most `seq_len` tokens, as arrays of pieces; nothing is copied.

`best_fit`: best-fit-decreasing bin packing of whole documents over a histogram of lengths. All documents of one
length are placed at once, so the cost is O(n) for sorting plus (distinct lengths x distinct gaps); the rows are those
of the plain one-at-a-time algorithm, except for which of equally full rows takes which of equally long documents.
`wrapped`: one stream in seeded order, cut every `seq_len` tokens; no padding but in the last row.
`none`: a document a row.

No piece attends to another: each restarts its positions. A piece in which no token carries loss is left out and
counted, since the first token of a piece is never predicted and a row of such pieces would have an undefined loss;
`wrapped`, whose rows are the stream as it is, leaves out rows of nothing else, and counts their pieces.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.options import LongDocuments, Packing
from data_prep.store.document_table import DocumentTable
from training.data.order import permute

Ints = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Pieces:
    """Piece i is tokens [start[i], start[i] + length[i]) of document[i]; all of shape (pieces,).

    Held in 32 bits where the numbers allow it: 12 bytes a piece.
    """

    document: Ints
    start: Ints
    length: Ints

    @classmethod
    def of(cls, document: Ints, start: Ints, length: Ints) -> "Pieces":
        """From arrays of equal length, as int64."""
        return cls(_narrow(document), _narrow(start), _narrow(length))

    def take(self, chosen: NDArray[np.bool_] | Ints) -> "Pieces":
        """A choice of the pieces, by mask or index."""
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
        """Rows of the plan."""
        return len(self.row_offsets) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens in all rows, without padding."""
        return int(self.pieces.length.sum(dtype=np.int64))

    @property
    def row_lengths(self) -> Ints:
        """Tokens of each row, shape (rows,)."""
        if not self.num_rows:
            return np.empty(0, np.int64)
        return np.add.reduceat(self.pieces.length, self.row_offsets[:-1], dtype=np.int64)


def describe_changes(counts: Mapping[str, int]) -> str:
    """What packing did to documents, by the names of `RowPlan`: `3 split, 1 piece without loss left out`."""
    silent = counts["silent"]
    parts = [f"{counts[name]} {name}" for name in ("split", "truncated", "dropped") if counts[name]]
    return ", ".join(parts + [f"{silent} piece{'s' * (silent > 1)} without loss left out"] * bool(silent))


def plan_rows(
    table: DocumentTable, documents: Ints, seq_len: int, packing: Packing, long_documents: LongDocuments, seed: int
) -> RowPlan:
    """Rows for the given document numbers of a table (a number may repeat)."""
    if packing == "wrapped":
        return _plan_wrapped(table, documents, seq_len, seed)
    pieces, counts = cut_long(documents, table.lengths, seq_len, long_documents)
    with_loss = ~find_silent(pieces, table)
    counts["silent"] = int((~with_loss).sum())
    if counts["silent"]:
        pieces = pieces.take(with_loss)
    if packing == "none":
        return RowPlan(pieces, _narrow(np.arange(len(pieces.length) + 1)), **counts)
    rows, num_rows = pack_best_fit(pieces.length, seq_len)
    return RowPlan(pieces.take(_sort_stably(rows)), _offsets(rows, num_rows), **counts)


def _offsets(rows: Ints, num_rows: int) -> Ints:
    return _narrow(np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=num_rows))]))


def _narrow(values: Ints) -> Ints:
    return values.astype(np.int32) if values.max(initial=0) < 2**31 else values


def cut_long(
    documents: Ints, table_lengths: NDArray[np.int32], seq_len: int, policy: LongDocuments
) -> tuple[Pieces, dict[str, int]]:
    """Pieces of at most `seq_len` tokens; documents over it are split, truncated or dropped, and counted."""
    lengths = table_lengths[documents].astype(np.int64)
    is_long = lengths > seq_len
    num_long = int(is_long.sum())
    if policy == "drop":
        documents, lengths = documents[~is_long], lengths[~is_long]
        return Pieces.of(documents, np.zeros_like(lengths), lengths), {"dropped": num_long}
    if policy == "truncate" or not num_long:
        counts = {"truncated": num_long} if policy == "truncate" else {"split": 0}
        return Pieces.of(documents, np.zeros_like(lengths), np.minimum(lengths, seq_len)), counts
    num_pieces = -(-lengths // seq_len)
    owner = np.repeat(np.arange(len(documents)), num_pieces)
    start = (np.arange(len(owner)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)) * seq_len
    return Pieces.of(documents[owner], start, np.minimum(lengths[owner] - start, seq_len)), {"split": num_long}


def find_silent(pieces: Pieces, table: DocumentTable) -> NDArray[np.bool_]:
    """Pieces none of whose tokens after the first carries loss, shape (pieces,)."""
    silent = pieces.length < 2
    masked = np.flatnonzero(table.has_loss_runs[pieces.document] & ~silent)
    begins, ends = pieces.start[masked] + 1, pieces.start[masked] + pieces.length[masked]
    silent[masked] = ~table.find_loss(pieces.document[masked], begins, ends)
    return silent


def pack_best_fit(lengths: Ints, capacity: int) -> tuple[Ints, int]:
    """Row of each piece, shape (pieces,), and the number of rows. Lengths must be in [1, capacity]."""
    histogram = np.bincount(lengths, minlength=1)
    gaps = _Gaps(capacity)
    descending = np.flatnonzero(histogram)[::-1]
    placed = [rows for length in descending.tolist() for rows in gaps.place(length, int(histogram[length]))]
    rows = np.empty(len(lengths), np.int32)
    rows[_sort_stably(lengths)[::-1]] = np.concatenate(placed) if placed else 0
    return rows, gaps.num_rows


def _sort_stably(keys: Ints) -> Ints:
    """Indices that sort `keys` (below 2^31): the values are sorted with their index in the low bits, which takes a
    tenth of the time of numpy's stable argsort."""
    return np.sort((keys.astype(np.int64) << 32) | np.arange(len(keys))) & 0xFFFFFFFF


class _Gaps:
    """Rows by the room that is left in them."""

    def __init__(self, capacity: int):
        self.num_rows = 0
        self._capacity = capacity
        self._rooms: list[int] = []  # those with rows, ascending
        self._rows: dict[int, list[Ints]] = {}

    def place(self, length: int, count: int) -> Iterator[Ints]:
        """Rows for `count` pieces of one length, tightest first.

        The tightest row keeps being the tightest until it is too full for another piece of this length, so a row
        with room r takes floor(r / length) of them in a run.
        """
        while count:
            position = bisect_left(self._rooms, length)
            is_open = position < len(self._rooms)
            room = self._rooms[position] if is_open else self._capacity
            each = room // length
            rows = self._take(position, -(-count // each)) if is_open else self._open(-(-count // each))
            filled = rows if each == 1 else np.repeat(rows, each)[:count]
            full, rest = divmod(len(filled), each)
            self._put(room - each * length, rows[:full])
            if rest:
                self._put(room - rest * length, rows[full:])
            yield filled
            count -= len(filled)

    def _open(self, count: int) -> Ints:
        self.num_rows += count
        return np.arange(self.num_rows - count, self.num_rows, dtype=np.int32)

    def _take(self, position: int, count: int) -> Ints:
        """At most `count` rows, all of one chunk, that have the room at this position."""
        room = self._rooms[position]
        chunks = self._rows[room]
        rows = chunks.pop()
        if len(rows) > count:
            chunks.append(rows[count:])
            return rows[:count]
        if not chunks:
            del self._rows[room], self._rooms[position]
        return rows

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
    pieces = Pieces.of(documents[owner], begin - starts[owner], end - begin)
    rows = begin // seq_len
    silent = find_silent(pieces, table)
    with_loss = np.bincount(rows, weights=~silent) > 0
    _, renumbered = np.unique(rows[with_loss[rows]], return_inverse=True)
    split = int((np.bincount(owner, minlength=len(documents)) > 1).sum())
    kept = with_loss[rows]
    counts = {"split": split, "silent": int((~kept).sum())}
    return RowPlan(pieces.take(kept), _offsets(renumbered, int(with_loss.sum())), **counts)
