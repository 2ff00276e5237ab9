"""Packed rows of a store as a map-style dataset.

`__getitem__` costs a few views of mapped memory and two copies of `seq_len` numbers. The dataset pickles as the
store's path and the plan's arrays, so worker processes, forked or spawned, read the same pages of the same files.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from data_prep.options import DataSection, SourceSection
from data_prep.store import DocumentTable, Split, Store
from training.data.packing import RowPlan, plan_rows

logger = logging.getLogger("redline.data")

NO_LOSS = -100


@dataclass(frozen=True)
class Row:
    """One unpadded row: `input_ids` and `labels` of shape (tokens,), and the lengths of its documents.

    Labels are not shifted (HF models do that); -100 on tokens without loss and on the first of each document, whose
    prediction would come from another one.
    """

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    document_lengths: list[int]


class RowDataset(Dataset[Row]):
    """Rows of one split. `plan` says how documents became rows."""

    def __init__(self, store: Store, split: Split, plan: RowPlan, seq_len: int):
        self.store = store
        self.split: Split = split
        self.plan = plan
        self.seq_len = seq_len

    def __len__(self) -> int:
        return self.plan.num_rows

    def __getitem__(self, index: int) -> Row:
        table, plan = self.store.split(self.split), self.plan
        begin, end = int(plan.row_offsets[index]), int(plan.row_offsets[index + 1])
        lengths = plan.pieces.length[begin:end].tolist()
        input_ids = np.empty(sum(lengths), np.int32)
        labels = np.empty_like(input_ids)
        at = 0
        for piece, length in enumerate(lengths, begin):
            document, start = int(plan.pieces.document[piece]), int(plan.pieces.start[piece])
            ids = table.ids(document)[start : start + length]
            input_ids[at : at + length] = ids
            _fill_labels(labels[at : at + length], ids, table.loss_runs(document), start)
            at += length
        return Row(input_ids, labels, lengths)


class EvenRows(Dataset[Row]):
    """`rows` filled up to a multiple with rows that carry no loss: every rank gets as many batches, no row counts twice
    and none is dropped. For evaluation, where a mean over tokens gives such a row no weight."""

    def __init__(self, rows: Dataset[Row], num_rows: int, multiple: int):
        self.rows = rows
        self.num_rows = num_rows
        self._length = -(-num_rows // multiple) * multiple

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Row:
        if index < self.num_rows:
            return self.rows[index]
        row = self.rows[0]
        return Row(row.input_ids, np.full_like(row.labels, NO_LOSS), row.document_lengths)


def _fill_labels(labels: NDArray[np.int32], ids: NDArray[np.int32], runs: NDArray[np.int32] | None, start: int) -> None:
    if runs is None:
        labels[:] = ids
    else:
        labels[:] = NO_LOSS
        for first, end in np.clip(runs.reshape(-1, 2) - start, 0, len(ids)).tolist():
            labels[first:end] = ids[first:end]
    labels[0] = NO_LOSS


def choose_documents(table: DocumentTable, sources: Sequence[SourceSection]) -> NDArray[np.int64]:
    """Document numbers of an epoch by the weights of their sources: floor(weight) times each, and once more those
    whose content hash falls in the fraction, so that the choice is stable when data is added."""
    weights = np.array([source.weight for source in sources])[table.sources]
    whole = np.floor(weights)
    # The split was chosen by the low 64 bits of the same hash: mix them, so that the two choices are independent.
    shares = (table.hashes * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(11)) / 2.0**53
    return np.repeat(np.arange(len(table)), (whole + (shares < weights - whole)).astype(np.int64))


def build_datasets(store: Store, data: DataSection) -> tuple[RowDataset, RowDataset | None]:
    """The training rows, and the validation rows where there are any; logs how well they are packed."""
    train_table = store.split("train")
    train = _build(store, "train", choose_documents(train_table, data.sources), data)
    count = len(store.split("validation"))
    return train, _build(store, "validation", np.arange(count), data) if count else None


def _build(store: Store, split: Split, documents: NDArray[np.int64], data: DataSection) -> RowDataset:
    plan = plan_rows(store.split(split), documents, data.seq_len, data.packing, data.long_documents, data.seed)
    _log(split, plan, len(documents), data)
    return RowDataset(store, split, plan, data.seq_len)


def _log(split: str, plan: RowPlan, num_documents: int, data: DataSection) -> None:
    used = 100 * plan.num_tokens / max(1, plan.num_rows * data.seq_len)
    what = f"{used:.2f} % of {data.seq_len} x {plan.num_rows} used" if data.packing != "none" else "padded by batch"
    counts = {"split": plan.split, "truncated": plan.truncated, "dropped": plan.dropped}
    long = "".join(f", {count} {name}" for name, count in counts.items() if count)
    silent = f", {plan.silent} pieces without loss left out" if plan.silent else ""
    how = f"{data.packing}, {what}{long}{silent}"
    logger.info("%s: %d documents in %d rows (%s)", split, num_documents, plan.num_rows, how)
