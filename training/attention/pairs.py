"""How many query-key pairs causal attention has: the unit in which its work is counted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Attended:
    """What the attention of one layer sees of a micro-batch."""

    pairs: int
    """Query-key pairs that are allowed: causal, within documents, within the window."""
    documents: int
    rows: int
    seq_len: int
    """Width of a row, padding included."""
    window: int | None
    """Keys that a query may see at most, in tokens; None: all before it."""

    @property
    def square(self) -> int:
        """All pairs of each row."""
        return self.rows * self.seq_len * self.seq_len

    @property
    def is_whole_rows(self) -> bool:
        """Whether each row is one whole document and no window cuts it: attention then needs no mask."""
        if self.window is not None and self.window < self.seq_len:
            return False
        return self.documents == self.rows and self.pairs == self.rows * causal_pairs(self.seq_len)


def causal_pairs(length: int, window: int | None = None) -> int:
    """Query-key pairs of a causal document: sum over queries i = 1..n of min(i, window)."""
    if window is None or length <= window:
        return length * (length + 1) // 2
    return window * (window + 1) // 2 + (length - window) * window


def square_pairs(length: int, window: int | None = None) -> int:
    """The same, un-halved: each query counted with all n keys, or with a whole window."""
    return length * (length if window is None else min(length, window))
