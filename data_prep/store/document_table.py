"""Reads documents by number through a memory map; token ids are views, without copying or decoding.

Opening a table reads nothing. The first access to `lengths` loads 4 bytes for each document.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.store.arrow import find_nulls, view

Ints = NDArray[np.integer[Any]]
NO_INTS: Ints = np.empty(0, np.int64)


class DocumentTable:
    """Documents by number: those of one split, as views of mapped files, or record batches in memory.

    A table of files pickles as its paths, so worker processes map the files themselves. A file is mapped when the first
    of its documents is read. Methods that concern the whole table map all files, 0.2 ms each.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch] = (), paths: list[Path] | None = None, counts: Ints = NO_INTS):
        self._paths, self._counts = paths, counts
        self._shard_starts = [0, *np.cumsum(counts).tolist()]
        self._mapped: dict[int, list[_Batch]] = {}
        if paths is None:
            self._mapped[0] = [_view_batch(batch) for batch in batches]
            self._shard_starts = [0, sum(len(batch.offsets) - 1 for batch in self._mapped[0])]

    @classmethod
    def open(cls, paths: list[Path], counts: Ints) -> "DocumentTable":
        """Open files of `counts[i]` documents each."""
        return cls(paths=paths, counts=counts)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._paths is not None:
            return DocumentTable.open, (self._paths, self._counts)
        return object.__reduce_ex__(self, 2)  # type: ignore[return-value]

    def __len__(self) -> int:
        return self._shard_starts[-1]

    def _map(self, shard: int) -> "list[_Batch]":
        if shard not in self._mapped:
            assert self._paths is not None
            self._mapped[shard] = [_view_batch(batch) for batch in _read_batches(self._paths[shard])]
        return self._mapped[shard]

    @cached_property
    def _batches(self) -> "list[_Batch]":
        return [batch for shard in range(len(self._shard_starts) - 1) for batch in self._map(shard)]

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum([len(batch.offsets) - 1 for batch in self._batches], dtype=np.int64)])

    def _find(self, index: int) -> "tuple[_Batch, int]":
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        shard = bisect_right(self._shard_starts, index) - 1
        row = index - self._shard_starts[shard]
        for batch in self._map(shard):
            if row < len(batch.offsets) - 1:
                return batch, row
            row -= len(batch.offsets) - 1
        raise IndexError(f"document {index}: shard {shard} has fewer documents than the manifest says")

    def ids(self, index: int) -> NDArray[np.int32]:
        """Token ids of a document, shape (tokens,), as a read-only view. Raises IndexError."""
        batch, row = self._find(index)
        return batch.ids[batch.offsets[row] : batch.offsets[row + 1]]

    def loss_runs(self, index: int) -> NDArray[np.int32] | None:
        """Flattened [start, end) token ranges of a document that carry loss, shape (2 * ranges,); None: all."""
        batch, row = self._find(index)
        if batch.run_offsets is None or batch.runs_missing[row]:
            return None
        return batch.runs[batch.run_offsets[row] : batch.run_offsets[row + 1]]

    def gather_ids(self, documents: Ints, begins: Ints, ends: Ints) -> NDArray[np.int32]:
        """Concatenate tokens [begins[i], ends[i]) of documents[i]."""
        first = self._first_tokens[documents]
        spans = (first + begins).tolist(), (first + ends).tolist()
        pieces = zip(self._find_batches(documents).tolist(), *spans, strict=True)
        return np.concatenate([self._ids[batch][begin:end] for batch, begin, end in pieces])

    def gather_loss_runs(self, documents: Ints) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Concatenate the token ranges [start, end) that carry loss, shape (runs, 2).

        Also returns their number in each document, shape (len(documents),).
        """
        begins, ends = (offsets[documents] for offsets in self._run_offsets)
        pieces = zip(self._find_batches(documents).tolist(), begins.tolist(), ends.tolist(), strict=True)
        runs = [self._batches[batch].runs[begin:end] for batch, begin, end in pieces]
        counts = (ends - begins) // 2
        for index in np.flatnonzero(~self.has_loss_runs[documents]).tolist():
            runs[index] = np.array([0, self.lengths[documents[index]]], np.int32)
            counts[index] = 1
        return np.concatenate(runs).reshape(-1, 2), counts

    def find_loss(self, documents: Ints, begins: Ints, ends: Ints) -> NDArray[np.bool_]:
        """Whether any of tokens [begins[i], ends[i]) of documents[i] carries loss, shape (len(documents),)."""
        found = ends > begins
        batches = self._find_batches(documents)
        order = np.argsort(batches, kind="stable")
        cuts = np.flatnonzero(np.diff(batches[order])) + 1
        for where in np.split(order, cuts) if len(order) else ():
            number = int(batches[where[0]])
            rows = documents[where] - self._starts[number]
            found[where] &= self._batches[number].find_loss(rows, begins[where], ends[where])
        return found

    def _find_batches(self, documents: Ints) -> NDArray[np.int64]:
        return np.searchsorted(self._starts, documents, side="right") - 1

    @cached_property
    def _ids(self) -> list[NDArray[np.int32]]:
        return [batch.ids for batch in self._batches]

    @cached_property
    def _first_tokens(self) -> NDArray[np.int32]:
        """Offset of each document in the ids of its batch, shape (documents,)."""
        return _concatenate([batch.offsets[:-1] for batch in self._batches])

    @cached_property
    def _run_offsets(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Start and end of each document's runs in those of its batch, (documents,) each; equal if it has none."""
        offsets = [np.zeros_like(b.offsets) if b.run_offsets is None else b.run_offsets for b in self._batches]
        return _concatenate([each[:-1] for each in offsets]), _concatenate([each[1:] for each in offsets])

    def all_ids(self) -> Iterator[NDArray[np.int32]]:
        """Yield the ids of all documents, one batch at a time."""
        for batch in self._batches:
            yield batch.ids

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Number of tokens of each document, shape (documents,)."""
        return _concatenate([np.diff(batch.offsets).astype(np.int32) for batch in self._batches])

    @cached_property
    def sources(self) -> NDArray[np.int32]:
        """Index into `data.sources` of each document, shape (documents,)."""
        return _concatenate([batch.sources for batch in self._batches])

    @cached_property
    def hashes(self) -> NDArray[np.uint64]:
        """First 8 bytes of each document's content hash, shape (documents,)."""
        return _concatenate([batch.hashes for batch in self._batches], np.uint64)

    @cached_property
    def has_loss_runs(self) -> NDArray[np.bool_]:
        """Whether each document has a loss mask, shape (documents,); without one, all tokens carry loss."""
        return _concatenate([~batch.runs_missing for batch in self._batches], np.bool_)


def _concatenate(arrays: list[NDArray[Any]], dtype: Any = np.int32) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype)


@dataclass(frozen=True)
class _Batch:
    ids: NDArray[np.int32]
    offsets: NDArray[np.int32]
    runs: NDArray[np.int32]
    run_offsets: NDArray[np.int32] | None
    runs_missing: NDArray[np.bool_]
    sources: NDArray[np.int32]
    hashes: NDArray[np.uint64]

    def find_loss(self, rows: Ints, begins: Ints, ends: Ints) -> NDArray[np.bool_]:
        """Whether any of tokens [begin, end) of each row carries loss.

        This is so if the last run that starts before `end` is in this row and ends after `begin`.
        """
        if self.run_offsets is None:
            return np.ones(len(rows), np.bool_)
        run_rows = np.repeat(np.arange(len(self.run_offsets) - 1), np.diff(self.run_offsets) // 2)
        runs = self.runs[self.run_offsets[0] : self.run_offsets[-1]]  # a slice of a batch has all runs of the batch
        keys = (run_rows << 32) + runs[::2]
        last = np.searchsorted(keys, (rows.astype(np.int64) << 32) + ends) - 1
        in_row = last >= (self.run_offsets[rows] - self.run_offsets[0]) // 2
        reaches = runs[1::2][np.maximum(last, 0)] > begins if len(keys) else in_row
        return self.runs_missing[rows] | (in_row & reaches)


def _read_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
        yield from reader


def _view_batch(batch: pa.RecordBatch) -> _Batch:
    ids, runs, sources, hashes = batch.columns
    missing = find_nulls(runs)
    words = np.frombuffer(hashes.buffers()[1], np.uint64).reshape(-1, 2)
    return _Batch(
        ids=view(ids.values),
        offsets=view(ids.offsets),
        runs=view(runs.values),
        run_offsets=None if missing.all() else view(runs.offsets),
        runs_missing=missing,
        sources=view(sources),
        hashes=words[hashes.offset : hashes.offset + batch.num_rows, 0],
    )
