"""Label smoothing (Szegedy et al. 2016) and z-loss of the next-token loss from all logits, for every causal model.

The Trainer's own smoother shifts the labels only for class names on a list in transformers: any other model, MiniGPT
among them, would learn to repeat the token that it sees. It also computes in the dtype of the logits, which rounds the
loss to three digits in bf16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy, pad

from training.loss.terms import IGNORE, PLAIN, LossTerms

LossFunction = Callable[[Any, torch.Tensor, Any], torch.Tensor]


def next_token_loss(
    logits: torch.Tensor, labels: torch.Tensor, terms: LossTerms, num_items: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Mean over the tokens with loss of what `terms` say, or its sum over `num_items`. Computed in float32.

    logits: (rows, seq_len, vocab). labels: (rows, seq_len), not shifted; -100 carries no loss, as the first token of a
    document does in packed rows.
    """
    shifted = pad(labels, (0, 1), value=IGNORE)[..., 1:].to(logits.device).flatten()  # of the small one of the two
    scores = logits.float().flatten(0, 1)
    loss = cross_entropy(scores, shifted, ignore_index=IGNORE, reduction="sum", label_smoothing=terms.label_smoothing)
    if terms.z_loss:
        loss = loss + terms.z_loss * (scores.logsumexp(1).square() * (shifted != IGNORE)).sum()
    return loss / ((shifted != IGNORE).sum() if num_items is None else num_items)


def build_loss(terms: LossTerms, is_training: Callable[[], bool]) -> LossFunction | None:
    """The Trainer's `compute_loss_func`; None where the model's own loss will do. An evaluation is cross-entropy."""
    if terms.is_plain:
        return None

    def compute(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return next_token_loss(outputs["logits"], labels, terms if is_training() else PLAIN, num_items_in_batch)

    return compute
