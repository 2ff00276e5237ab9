"""What a batch holds, counted once by the collator for every meter.

The collator puts a `BatchInfo` into the batch under `BATCH_INFO`; the Trainer takes it out before the model is called.
"""

from dataclasses import dataclass

BATCH_INFO = "batch_info"


@dataclass(frozen=True)
class BatchInfo:
    """Counts of one micro-batch.

    `tokens` is `rows * seq_len` with padding; `useful_tokens` leaves padding out; `loss_tokens` is the number of
    predictions that enter the loss (labels after the shift); `document_lengths` are the lengths of the pieces that
    attend to themselves only, without padding, and sum to `useful_tokens`.
    """

    rows: int
    seq_len: int
    tokens: int
    useful_tokens: int
    loss_tokens: int
    document_lengths: list[int]
