"""Do documents that share a row leave each other alone? Asked of the model that trains, before its first step.

Not every attention does: some ignore `position_ids`, some see the documents in a batch of one row only, and nothing
fails; the loss is merely of another task. So the per-token losses of packed rows are compared with those of the same
documents alone, through the collator, the kernels, the dtype and the engine (DDP, ZeRO) that are about to train.

1. Two rows of three documents of random tokens, some lengths different: one forward.
2. The documents of each length as a batch of their own, with no mark of packing: two forwards, on every rank.
3. The root mean square of the differences, over the spread (standard deviation) of the losses alone.

The limit is `TOLERANCE` units in the last place of the compute type. Measured over MiniGPT, Qwen2 and Llama of 2 to 24
layers, eager and SDPA: rounding is at most 2 units in bfloat16 (0.008) and far below one in float32 (2e-6); documents
that see each other are at 0.1 to 1.3 in any type. float32 counts as TF32, which GPUs may use for it.
"""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from data_prep.errors import UserError
from training.data.batch import BATCH_INFO
from training.data.collator import Collator
from training.data.dataset import NO_LOSS, Row
from training.precision import PRECISIONS

logger = logging.getLogger("redline.data")

ROWS = ((8, 12, 12), (12, 12, 8))
WIDTH = 32
TOLERANCE = 8
EPSILON = {precision.dtype: precision.rounding for precision in PRECISIONS}

Forward = Callable[[dict[str, Any]], torch.Tensor]


def measure_crosstalk(forward: Forward, *, vocab_size: int, varlen: bool = True) -> float:
    """How far the per-token losses of packed rows are from those of their documents alone, as a share of the spread
    of the latter. `forward` takes a batch without labels and gives logits, (rows, width, vocab_size)."""
    generator = np.random.default_rng(0)
    documents = [[generator.integers(0, vocab_size, length, np.int32) for length in row] for row in ROWS]
    packed = Collator(0, WIDTH, 1, "best_fit", varlen)([_row(*row) for row in documents])
    together = torch.cat(_token_losses(forward, packed))
    single = Collator(0, WIDTH, 1, "none")
    alone: dict[int, list[torch.Tensor]] = {}
    for length in sorted(set(sum(ROWS, ()))):
        rows = [_row(document) for row in documents for document in row if len(document) == length]
        alone[length] = _token_losses(forward, single(rows))
    expected = torch.cat([alone[len(document)].pop(0) for row in documents for document in row])
    return ((together - expected).square().mean().sqrt() / expected.std().clamp_min(1e-9)).item()


def check_packing(crosstalk: float, dtype: torch.dtype, attention: str) -> None:
    """Raises UserError when `measure_crosstalk` found more than rounding in `dtype` explains."""
    limit = TOLERANCE * EPSILON[dtype]
    if not crosstalk <= limit:
        raise UserError(
            f"data.packing: under attention {attention!r} documents in a row see each other: their losses differ from "
            f"those alone by {crosstalk:.2g} of the spread (rounding: below {limit:.2g}); use another "
            "model.attn_implementation (sdpa, eager), or data.packing: none"
        )
    what = "packing: under %s documents in a row give the losses they give alone (difference %.1e of their spread)"
    logger.info(what, attention, crosstalk)


def _row(*documents: np.ndarray) -> Row:
    ids = np.concatenate(documents)
    labels = ids.copy()
    lengths = [len(document) for document in documents]
    labels[np.cumsum([0, *lengths[:-1]])] = NO_LOSS
    return Row(ids, labels, lengths)


def _token_losses(forward: Forward, batch: dict[str, Any]) -> list[torch.Tensor]:
    """Loss of each predicted token of each row in nats, float32 on the CPU."""
    labels = batch.pop("labels")[:, 1:]
    del batch[BATCH_INFO]
    logits = forward(batch)[:, :-1].float().cpu()
    chosen = labels != NO_LOSS
    losses = torch.nn.functional.cross_entropy(logits[chosen], labels[chosen], reduction="none")
    return list(losses.split(chosen.sum(1).tolist()))
