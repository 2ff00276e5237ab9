"""What the kernels compute, in plain torch and float64; and how far off a result may be."""

from __future__ import annotations

import torch
from torch import Tensor

from training.kernels.cpu.functions import AttentionTerms, Documents

# Relative to the reference's norm.
TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 1e-2}


def find_error(found: Tensor, expected: Tensor, floor: float = 1e-3) -> float:
    """Norm of the difference over that of what is expected, which counts as `floor` per element at least."""
    difference = found.detach().double() - expected.detach().double()
    return float(
        difference.norm() / max(1e-30, float(expected.detach().double().norm()), floor * expected.numel() ** 0.5)
    )


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (rows, tokens, heads, dim); cos and sin (rows or 1, tokens, dim)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.unsqueeze(2) + torch.cat((-second, first), dim=-1) * sin.unsqueeze(2)


def attend(
    query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms, angles: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Document by document, scores in full; tokens of no document get zeros."""
    if angles is not None:
        query, key = rotate(query, *angles), rotate(key, *angles)
    rows, tokens, heads, _ = query.shape
    key, value = (x.repeat_interleave(heads // x.shape[2], dim=2).flatten(0, 1) for x in (key, value))
    query = query.flatten(0, 1)
    nothing = 0 * (query.sum() + key.sum() + value.sum())  # a batch without documents has gradients, too
    outs, end = [], 0
    for start, length in zip(terms.documents.starts.tolist(), terms.documents.lengths.tolist(), strict=True):
        place = slice(start, start + length)
        scores = torch.einsum("qhd,khd->hqk", query[place], key[place]) * terms.scale
        distance = torch.arange(length)[:, None] - torch.arange(length)
        seen = (distance >= 0) & (distance < (terms.window or length + 1))
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        outs += [_zeros(query, value, start - end), torch.einsum("hqk,khd->qhd", weights, value[place])]
        end = start + length
    outs.append(_zeros(query, value, rows * tokens - end))
    return torch.cat(outs).view(rows, tokens, heads, value.shape[-1]) + nothing


def _zeros(query: Tensor, value: Tensor, count: int) -> Tensor:
    return query.new_zeros((count, query.shape[1], value.shape[2]))


def add_rms_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x if delta is None else x + delta
    return total, total * (total.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def swiglu(packed: Tensor) -> Tensor:
    gate, up = packed.chunk(2, dim=-1)
    return gate * gate.sigmoid() * up


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float, z_loss: float, scale: float) -> Tensor:
    """(rows,), by the formulas of the module docstring of `training/loss/linear_cross_entropy.py`."""
    counted = labels != -100
    log_sums = logits.logsumexp(1)
    at_label = logits.gather(1, labels.where(counted, 0).unsqueeze(1)).squeeze(1)
    losses = (1 - smoothing) * (log_sums - at_label)
    if smoothing:  # a logit of minus infinity has no loss without it
        losses = losses + smoothing * (log_sums - logits.mean(1))
    return (losses + z_loss * log_sums.square()) * scale * counted


def documents_of(lengths: list[tuple[int, int]]) -> Documents:
    """From (start, length)."""
    starts, sizes = zip(*lengths, strict=True) if lengths else ((), ())
    return Documents(torch.tensor(starts, dtype=torch.int64), torch.tensor(sizes, dtype=torch.int64))
