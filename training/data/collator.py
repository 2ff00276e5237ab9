"""Rows to a batch of tensors, with its counts.

Packed rows have static shapes, (rows, seq_len): padding is a trailing document of its own, with positions that
restart and labels of -100, so no attention mask is needed and no real token sees it. transformers reads the
documents off `position_ids`, and only when `use_cache` is off, as its Trainer sets it. Without packing, rows are padded
to the longest, rounded up to a multiple, and an attention mask says what is real.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data_prep.options import Packing
from training.data.batch import BATCH_INFO, BatchInfo
from training.data.dataset import NO_LOSS, Row


@dataclass(frozen=True)
class Collator:
    """Calls give `input_ids`, `labels`, `position_ids` (all int64, (rows, width)), `attention_mask` where rows are
    padded without packing, and `BATCH_INFO`."""

    pad_token_id: int
    seq_len: int
    pad_to_multiple_of: int
    packing: Packing

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        packed = self.packing != "none"
        lengths = [len(row.input_ids) for row in rows]
        width = self.seq_len if packed else self._round_up(max(lengths))
        input_ids = np.full((len(rows), width), self.pad_token_id, np.int64)
        labels = np.full((len(rows), width), NO_LOSS, np.int64)
        positions = np.empty((len(rows), width), np.int64)
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            input_ids[index, :length] = row.input_ids
            labels[index, :length] = row.labels
            positions[index] = _restart_positions(row.document_lengths, width) if packed else np.arange(width)
        batch: dict[str, Any] = {
            "input_ids": torch.from_numpy(input_ids),
            "labels": torch.from_numpy(labels),
            "position_ids": torch.from_numpy(positions),
        }
        if not packed and min(lengths) < width:
            batch["attention_mask"] = torch.from_numpy((np.arange(width) < np.array(lengths)[:, None]).astype(np.int64))
        batch[BATCH_INFO] = BatchInfo(
            rows=len(rows),
            seq_len=width,
            tokens=len(rows) * width,
            useful_tokens=sum(lengths),
            loss_tokens=int((labels[:, 1:] != NO_LOSS).sum()),
            document_lengths=[length for row in rows for length in row.document_lengths],
        )
        return batch

    def _round_up(self, length: int) -> int:
        """The next multiple, but not past `seq_len`, which no row exceeds."""
        return min(-(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of, max(self.seq_len, length))


def _restart_positions(document_lengths: list[int], width: int) -> np.ndarray:
    """0, 1, … within each document and within the padding after them."""
    lengths = [*document_lengths, width - sum(document_lengths)]
    starts = np.concatenate([[0], np.cumsum(lengths[:-1])])
    return np.arange(width) - np.repeat(starts, lengths)
