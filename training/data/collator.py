"""Rows to a batch of tensors, with its counts.

Packed rows have static shapes, (rows, seq_len): padding is a trailing document of its own, with positions that
restart and labels of -100, so no attention mask is needed and no real token sees it. transformers reads the
documents off `position_ids`, and only when `use_cache` is off, as its Trainer sets it. Kernels of variable length get
them once per batch, under the names that transformers hands on to its attention functions. Without these FlashAttention
finds the documents in every layer, waiting for the device, and in a batch of several rows it does not find them at
all. The one shape that changes from batch to batch is theirs, (documents + 1,).

Without packing, rows are padded to the longest, rounded up to a multiple, and an attention mask says what is real.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_prep.options import Packing
from training.data.batch import BATCH_INFO, BatchInfo, padded_width
from training.data.dataset import NO_LOSS, Row

VARLEN_KEYS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


@dataclass(frozen=True)
class Collator:
    """Calls give `input_ids`, `labels`, `position_ids` (all int64, (rows, width)) and `BATCH_INFO`.

    Packed rows also have, with `varlen`, the documents of the batch as if its rows were one: `cu_seq_lens_q` and `_k`
    (int32, (documents + 1,), their boundaries, padding included) and `max_length_q` and `_k` (ints, the longest).
    Rows that are padded without packing have `attention_mask`. `token_bytes`: bytes of text by token id, to count.
    """

    pad_token_id: int
    seq_len: int
    pad_to_multiple_of: int
    packing: Packing
    varlen: bool = True
    token_bytes: NDArray[np.int32] | None = None

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Rows to a batch with its `BatchInfo`."""
        packed = self.packing != "none"
        lengths = np.array([len(row.input_ids) for row in rows])
        longest = int(lengths.max())
        width = self.seq_len if packed else padded_width(longest, self.pad_to_multiple_of, self.seq_len)
        # One block of memory for all three: the allocator keeps it for the next batch instead of giving it back.
        table = np.empty((3, len(rows), width), np.int64)
        input_ids, labels, positions = table
        _fill(input_ids, [row.input_ids for row in rows], self.pad_token_id)
        _fill(labels, [row.labels for row in rows], NO_LOSS)
        batch: dict[str, Any] = dict(zip(("input_ids", "labels", "position_ids"), torch.from_numpy(table), strict=True))
        if packed:
            bounds = _find_bounds(rows, width)
            _restart_positions(positions.ravel(), bounds)
            batch |= _describe_documents(bounds) if self.varlen else {}
        else:
            positions[:] = np.arange(width)
            batch |= _mask(lengths, width)
        targets = labels[:, 1:]
        with_loss = targets != NO_LOSS
        batch[BATCH_INFO] = BatchInfo(
            rows=len(rows),
            seq_len=width,
            tokens=len(rows) * width,
            useful_tokens=int(lengths.sum()),
            loss_tokens=int(np.count_nonzero(with_loss)),
            document_lengths=[length for row in rows for length in row.document_lengths],
            loss_bytes=0 if self.token_bytes is None else int(self.token_bytes[targets[with_loss]].sum()),
        )
        return batch


def _fill(table: NDArray[np.int64], rows: list[NDArray[np.int32]], padding: int) -> None:
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
        line[len(row) :] = padding


def _find_bounds(rows: Sequence[Row], width: int) -> NDArray[np.int32]:
    """Where the documents of the batch begin and end when its rows lie end to end; padding is one, too."""
    lengths: list[int] = []
    for row in rows:
        lengths += row.document_lengths
        if padding := width - len(row.input_ids):
            lengths.append(padding)
    bounds = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=bounds[1:])
    return bounds


def _restart_positions(positions: NDArray[np.int64], bounds: NDArray[np.int32]) -> None:
    """0, 1, … within each document."""
    positions[:] = np.arange(len(positions), dtype=np.int32) - np.repeat(bounds[:-1], np.diff(bounds))


def _describe_documents(bounds: NDArray[np.int32]) -> dict[str, Any]:
    ends, longest = torch.from_numpy(bounds), int(np.diff(bounds).max())
    return dict(zip(VARLEN_KEYS, (ends, ends, longest, longest), strict=True))


def _mask(lengths: NDArray[np.int64], width: int) -> dict[str, Any]:
    if lengths.min() == width:
        return {}
    return {"attention_mask": torch.from_numpy((np.arange(width) < lengths[:, None]).astype(np.int64))}
