"""Cross-entropy of a linear head, computed in chunks: all logits never exist at once.

The gradients of the hidden states and of the head are computed in the forward pass, while a chunk's logits are at hand
(as Liger's fused linear cross-entropy does, arXiv 2410.10989); the backward pass only scales them. Three matmuls in
all, as without chunks. Softmax and log-sum-exp are float32 over logits of the type that the matmuls compute in.

Per row with logits z, label y and lse = log sum exp z, in nats:

    loss = (1 - s) (lse - z_y) + s (lse - mean z) + c lse²
    dloss/dz = (1 + 2 c lse) softmax(z) - (1 - s) onehot(y) - s / V

with label smoothing s (as `F.cross_entropy`) and z-loss coefficient c (PaLM, arXiv 2204.02311).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from training.kernels.cpu import build
from training.loss.terms import IGNORE, PLAIN, LossTerms

# The logits of one chunk take a share of the head's gradient, which exists in any case, and at least this much beside a
# small one: each further chunk reads and writes the whole gradient.
SHARE_OF_GRADIENT = 0.12
CHUNK_BYTES = 32 * 2**20
SMALL_GRADIENT_BYTES = 128 * 2**20
# Chunks that a trace on fake tensors goes through: the first, one between, the last.
SHOWN_CHUNKS = 3
# float32 temporaries of a block of rows stay in a core's cache.
BLOCK_BYTES = 2 * 2**20


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, terms: LossTerms = PLAIN
) -> Tensor:
    """Sum of losses x `terms.scale`, a float32 scalar.

    hidden (rows, hidden_size) and weight (vocab_size, hidden_size) are multiplied in the type of autocast where it is
    on, else in hidden's. labels (rows,): -100 has no loss. bias (vocab_size,). On a CPU, rows without loss are left out
    before the first matmul; elsewhere counting them would make the host wait.
    """
    if hidden.device.type == "cpu" and not isinstance(hidden, FakeTensor):
        kept = (labels != IGNORE).nonzero().squeeze(-1)
        if len(kept) < len(labels):
            hidden, labels = hidden.index_select(0, kept), labels.index_select(0, kept)
    return _LinearCrossEntropy.apply(hidden, weight, bias, labels, terms)


def find_chunk_rows(rows: int, gradient_bytes: int, row_bytes: int) -> int:
    """Rows whose logits, of `row_bytes` each, are computed at once: all of them where they fit, else equal parts.

    gradient_bytes: of the head's weight.
    """
    at_least = CHUNK_BYTES if gradient_bytes <= SMALL_GRADIENT_BYTES else 0
    at_most = max(1, max(at_least, int(SHARE_OF_GRADIENT * gradient_bytes)) // row_bytes)
    chunks = -(-rows // at_most)
    return -(-max(1, rows) // max(1, chunks))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, terms: LossTerms
    ) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        # In float16 a gradient over the number of tokens would be too small to be a number: it is divided at the end.
        scale = terms.scale if dtype == torch.float16 else 1.0
        terms = replace(terms, scale=1.0) if dtype == torch.float16 else terms
        head = _Head(weight.to(dtype), weight.element_size(), bias, terms)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grads = _Gradients(
            torch.empty_like(hidden) if need_hidden else None,
            torch.empty(weight.shape, dtype=weight.dtype, device=weight.device) if need_weight else None,
            torch.zeros_like(bias) if bias is not None and need_bias else None,
        )
        with torch.autocast(device, enabled=False):
            loss = _run(hidden.to(dtype), labels, head, grads)
        ctx.grads, ctx.scale = grads, scale
        return loss * scale

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> tuple[Tensor | None, ...]:
        grads: _Gradients = ctx.grads
        ctx.grads = None
        factor = outputs[0] * ctx.scale
        for grad in (grads.hidden, grads.weight, grads.bias):
            if grad is not None and not _is_one(factor):
                grad.mul_(factor)
        return grads.hidden, grads.weight, grads.bias, None, None


def _is_one(factor: Tensor) -> bool:
    """Whether it is known to be 1 without waiting for a device."""
    return factor.device.type == "cpu" and not isinstance(factor, FakeTensor) and factor.item() == 1.0


@dataclass
class _Head:
    weight: Tensor
    gradient_itemsize: int
    bias: Tensor | None
    terms: LossTerms


@dataclass
class _Gradients:
    """Of the inputs that need one; filled chunk by chunk."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @property
    def wanted(self) -> bool:
        return any(grad is not None for grad in (self.hidden, self.weight, self.bias))


def _run(hidden: Tensor, labels: Tensor, head: _Head, grads: _Gradients) -> Tensor:
    loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
    if not len(hidden) and grads.weight is not None:
        grads.weight.zero_()
    gradient_bytes = head.weight.numel() * head.gradient_itemsize
    rows = find_chunk_rows(len(hidden), gradient_bytes, len(head.weight) * hidden.element_size())
    starts: Sequence[int] = range(0, len(hidden), rows)
    if isinstance(hidden, FakeTensor) and len(starts) > SHOWN_CHUNKS:  # the others are like them
        starts = [*starts[: SHOWN_CHUNKS - 1], starts[-1]]
    for start in starts:
        x = hidden[start : start + rows]
        logits = x @ head.weight.t() if head.bias is None else torch.addmm(head.bias.to(x.dtype), x, head.weight.t())
        loss += _rows_to_gradients(logits, labels[start : start + rows], head.terms, grads.wanted)
        if grads.hidden is not None:
            grads.hidden[start : start + rows] = logits @ head.weight
        if grads.weight is not None:
            _add_weight_gradient(grads.weight, logits, x, is_first=start == 0, is_last=start + rows >= len(hidden))
        if grads.bias is not None:
            grads.bias += logits.sum(0, dtype=torch.float32)
        del logits  # before those of the next chunk are made
    return loss


def _rows_to_gradients(logits: Tensor, labels: Tensor, terms: LossTerms, wanted: bool) -> Tensor:
    """Sum of the scaled losses; with `wanted` the logits become their gradients, in place."""
    if _has_kernel(logits):
        smoothing, z_loss, scale = terms.label_smoothing, terms.z_loss, float(terms.scale)
        return torch.ops.redline.cross_entropy_(logits, labels, smoothing, z_loss, scale, wanted).sum()
    vocab_size = logits.shape[1]
    loss = torch.zeros((), dtype=torch.float32, device=logits.device)
    block = max(1, BLOCK_BYTES // (4 * vocab_size)) if logits.device.type == "cpu" else max(1, len(logits))
    for start in range(0, len(logits), block):
        z = logits[start : start + block]
        y = labels[start : start + block]
        counted = y != IGNORE
        index = torch.where(counted, y, 0).unsqueeze(1)
        values = z.float()
        lse = torch.logsumexp(values, 1)
        losses = (1 - terms.label_smoothing) * (lse - values.gather(1, index).squeeze(1))
        if terms.label_smoothing:
            losses += terms.label_smoothing * (lse - values.mean(1))
        if terms.z_loss:
            losses += terms.z_loss * lse.square()
        factor = counted * terms.scale
        loss += (losses * factor).sum()
        if wanted:
            probabilities = values.sub_(lse.unsqueeze(1)).exp_()
            probabilities.mul_(((1 + 2 * terms.z_loss * lse) * factor).unsqueeze(1))
            if terms.label_smoothing:
                probabilities.sub_((terms.label_smoothing / vocab_size * factor).unsqueeze(1))
            probabilities.scatter_add_(1, index, ((terms.label_smoothing - 1) * factor).unsqueeze(1))
            z.copy_(probabilities)
    return loss


def _has_kernel(logits: Tensor) -> bool:
    """Whether one pass in C++ does it."""
    suits = logits.device.type == "cpu" and logits.dtype in (torch.float32, torch.bfloat16)
    return suits and not isinstance(logits, FakeTensor) and build.load() is None


def _add_weight_gradient(total: Tensor, gradients: Tensor, x: Tensor, *, is_first: bool, is_last: bool) -> None:
    """total += gradientsᵀ x, and the first time total = gradientsᵀ x, in the type of the weight.

    Several chunks are added block of rows by block of rows: there is no second head-sized temporary.
    """
    if is_first and is_last:
        total.copy_(gradients.t() @ x)
        return
    rows = max(1, CHUNK_BYTES // (4 * x.shape[1] * 4))
    for start in range(0, len(total), rows):
        block, part = total[start : start + rows], gradients[:, start : start + rows].t()
        if is_first:
            block.copy_(part @ x)
        elif block.dtype == x.dtype:
            block.addmm_(part, x)  # rounds once
        else:
            block += part @ x
