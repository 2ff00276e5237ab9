"""Label smoothing (Szegedy et al. 2016) of the next-token loss, for every causal model.

The Trainer's own smoother shifts the labels only for class names on a list in transformers: any other model, MiniGPT
among them, would learn to repeat the token that it sees. It also computes in the dtype of the logits, which rounds the
loss to three digits in bf16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy, pad

NO_LOSS = -100
LossFunction = Callable[[Any, torch.Tensor, Any], torch.Tensor]


def smoothed_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, factor: float, num_items: torch.Tensor | int | None = None
) -> torch.Tensor:
    """(1 - factor) x cross-entropy of the next token + factor x the mean cross-entropy over the vocabulary.

    logits: (rows, seq_len, vocab). labels: (rows, seq_len), not shifted; -100 carries no loss, as the first token of a
    document does in packed rows. num_items: what the sum over tokens is divided by, None: the tokens with loss.
    Computed in float32.
    """
    shifted = pad(labels, (0, 1), value=NO_LOSS)[..., 1:].to(logits.device)  # of the small one of the two
    loss_sum = cross_entropy(
        logits.float().flatten(0, 1), shifted.flatten(), ignore_index=NO_LOSS, reduction="sum", label_smoothing=factor
    )
    return loss_sum / ((shifted != NO_LOSS).sum() if num_items is None else num_items)


def build_loss(factor: float, is_training: Callable[[], bool]) -> LossFunction | None:
    """The Trainer's `compute_loss_func`; None without smoothing. An evaluation is never smoothed."""
    if not factor:
        return None

    def compute(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return smoothed_cross_entropy(outputs["logits"], labels, factor if is_training() else 0.0, num_items_in_batch)

    return compute
