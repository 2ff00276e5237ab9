"""Packed rows of a store as a map-style dataset.

The rows of a batch are gathered at once: a view of mapped memory for each document, then two copies of the tokens. The
dataset pickles as the store's paths and the plan's arrays, so worker processes, forked or spawned, read the same pages
of the same files.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from data_prep.hash_mixing import GOLDEN_RATIO
from data_prep.options import DataSection, SourceSection
from data_prep.store.document_table import DocumentTable
from data_prep.store.store import Split, Store
from training.data.packing import RowPlan, describe_changes, plan_rows

logger = logging.getLogger("redline.data")

NO_LOSS = -100
Ints = NDArray[np.integer[Any]]


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
    """Rows of some documents. `plan` says how documents became rows."""

    def __init__(self, table: DocumentTable, plan: RowPlan, seq_len: int):
        self.table = table
        self.plan = plan
        self.seq_len = seq_len

    def __len__(self) -> int:
        return self.plan.num_rows

    @property
    def row_lengths(self) -> Ints:
        """Tokens of each row, shape (rows,)."""
        return self.plan.row_lengths

    def __getitem__(self, index: int) -> Row:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        """Several rows, gathered at once; the loader takes this way."""
        table, plan = self.table, self.plan
        begins, ends = plan.row_offsets[indices], plan.row_offsets[np.asarray(indices) + 1]
        counts = ends - begins
        chosen = np.arange(counts.sum()) + np.repeat(ends - np.cumsum(counts), counts)
        documents, starts, lengths = (a[chosen] for a in (plan.pieces.document, plan.pieces.start, plan.pieces.length))
        input_ids = table.gather_ids(documents, starts, starts + lengths)
        firsts = np.cumsum(lengths, dtype=np.int64) - lengths
        labels = _make_labels(input_ids, table, documents, starts, lengths, firsts)
        rows, at, document = [], 0, 0
        all_lengths = lengths.tolist()
        for count in counts.tolist():
            row_lengths = all_lengths[document : document + count]
            end = at + sum(row_lengths)
            rows.append(Row(input_ids[at:end], labels[at:end], row_lengths))
            at, document = end, document + count
        return rows


def _make_labels(
    ids: NDArray[np.int32], table: DocumentTable, documents: Ints, starts: Ints, lengths: Ints, firsts: Ints
) -> NDArray[np.int32]:
    """Labels of pieces that lie end to end in `ids`, each from `firsts[i]` on."""
    if table.has_loss_runs[documents].any():
        runs, counts = table.gather_loss_runs(documents)
        # Where each run lies in `ids`; of a run that reaches out of its piece, what lies within.
        begin, end = np.repeat(firsts, counts), np.repeat(firsts + lengths, counts)
        edges = np.clip(runs + np.repeat(firsts - starts, counts)[:, None], begin[:, None], end[:, None]).ravel()
        spans = np.diff(edges, prepend=0, append=len(ids))
        has_loss = np.repeat(np.arange(len(spans)) % 2 == 1, spans)
        labels = np.where(has_loss, ids, np.int32(NO_LOSS))
    else:
        labels = ids.copy()
    labels[firsts] = NO_LOSS
    return labels


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


def choose_documents(table: DocumentTable, sources: Sequence[SourceSection]) -> NDArray[np.int64]:
    """Document numbers of an epoch by the weights of their sources: floor(weight) times each, and once more those
    whose content hash falls in the fraction, so that the choice is stable when data is added."""
    weights = np.array([source.weight for source in sources])[table.sources]
    whole = np.floor(weights)
    # The split was chosen by the low 64 bits of the same hash: mix them, so that the two choices are independent.
    shares = (table.hashes * GOLDEN_RATIO >> np.uint64(11)) / 2.0**53
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
    return RowDataset(store.split(split), plan, data.seq_len)


def _log(split: str, plan: RowPlan, num_documents: int, data: DataSection) -> None:
    used = 100 * plan.num_tokens / max(1, plan.num_rows * data.seq_len)
    what = f"{used:.2f} % of {data.seq_len} x {plan.num_rows} used" if data.packing != "none" else "padded by batch"
    how = ", ".join(filter(None, (data.packing, what, describe_changes(vars(plan)))))
    logger.info("%s: %d documents in %d rows (%s)", split, num_documents, plan.num_rows, how)
