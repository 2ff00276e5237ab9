"""What a batch holds, counted once by the collator for every meter.

The collator puts a `BatchInfo` into the batch under `BATCH_INFO`; the Trainer takes it out before the model is called.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

BATCH_INFO = "batch_info"

Lengths = TypeVar("Lengths", int, NDArray[np.int64])


@dataclass(frozen=True)
class BatchInfo:
    """Counts of one micro-batch.

    `tokens` is `rows * seq_len` with padding; `useful_tokens` leaves padding out; `loss_tokens` is the number of
    predictions that enter the loss (labels after the shift); `document_lengths` are the lengths of the pieces that
    attend to themselves only, without padding, and sum to `useful_tokens`; `row_ids` name the rows, as
    `TrainBatches.describe_rows` knows them (none in evaluation); `loss_bytes` are the UTF-8 bytes of the text that the
    tokens with a loss spell (`token_bytes.py`), 0 where they are not counted.
    """

    rows: int
    seq_len: int
    tokens: int
    useful_tokens: int
    loss_tokens: int
    document_lengths: list[int]
    row_ids: tuple[Any, ...] = ()
    loss_bytes: int = 0


def padded_width(length: Lengths, multiple: int, seq_len: int) -> Lengths:
    """Width of a padded batch whose longest row has `length` tokens: the next multiple, but not past `seq_len`, which
    no row exceeds. Takes an int or an array."""
    width = -(-length // multiple) * multiple
    return (
        np.maximum(np.minimum(width, seq_len), length)
        if isinstance(length, np.ndarray)
        else max(min(width, seq_len), length)
    )
