"""Autograd functions over `torch.ops.redline.*`, for CPU tensors of float32 or bfloat16."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from training.kernels.cpu import ops as _declared  # noqa: F401

ops: Any = torch.ops.redline
DIM_UNIT = 16  # head sizes that the attention kernel computes are its multiples


@dataclass(frozen=True)
class Documents:
    """Where the documents of a batch lie: first tokens (of all rows in line) and lengths, int64 on the CPU."""

    starts: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class AttentionTerms:
    """What attention computes besides its inputs. scale: of scores; window: keys a query sees at most, 0: all."""

    documents: Documents
    scale: float
    window: int = 0


class _Attention(torch.autograd.Function):
    """One tensor holds queries, keys and values side by side (rows, tokens, heads + 2 kv_heads, dim) where `kv_heads`
    is given, and gets its gradient in one piece; else there are three."""

    @staticmethod
    def forward(  # noqa: PLR0913  autograd takes gradients of arguments of their own only
        ctx: Any, query: Tensor, key: Any, value: Any, angles: Any, terms: AttentionTerms, kv_heads: int
    ) -> Tensor:
        cos, sin = angles or (None, None)
        inputs = _split(query, kv_heads) if kv_heads else (query, key, value)
        documents = terms.documents
        out, log_sums = ops.attention(*inputs, cos, sin, documents.starts, documents.lengths, terms.scale, terms.window)
        ctx.save_for_backward(query, key, value, out, log_sums)
        ctx.angles, ctx.terms, ctx.kv_heads = (cos, sin), terms, kv_heads
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        query, key, value, out, log_sums = ctx.saved_tensors
        terms: AttentionTerms = ctx.terms
        if ctx.kv_heads:
            of_query, of_key, of_value = torch.empty_like(query), None, None
            inputs, results = _split(query, ctx.kv_heads), _split(of_query, ctx.kv_heads)
        else:
            inputs = (query, key, value)
            of_query, of_key, of_value = results = tuple(_empty_dense(x) for x in inputs)
        (grad,) = grads
        ops.attention_backward(
            grad if grad.stride(-1) == 1 else grad.contiguous(), *inputs, *ctx.angles, out, log_sums,
            terms.documents.starts, terms.documents.lengths, terms.scale, terms.window, *results,
        )  # fmt: skip
        return of_query, of_key, of_value, None, None, None


def _split(packed: Tensor, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    heads = packed.shape[2] - 2 * kv_heads
    return packed[:, :, :heads], packed[:, :, heads : heads + kv_heads], packed[:, :, heads + kv_heads :]


def _empty_dense(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


def attend(
    query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms, angles: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Causal attention within documents, (rows, tokens, heads, dim) like `query`.

    query (rows, tokens, heads, dim), key and value with kv_heads heads, any strides. angles: cos and sin (rows or 1,
    tokens, dim) float32 that queries and keys are rotated by first. Tokens of no document get zeros.
    """
    dim = value.shape[-1]
    widest = -(-max(query.shape[-1], dim) // DIM_UNIT) * DIM_UNIT
    if widest == query.shape[-1] == dim:
        dense = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
        return _Attention.apply(*dense, angles, terms, 0)
    if angles is not None:
        raise ValueError(f"angles need a head_dim that is a multiple of {DIM_UNIT}, not {dim}")
    padded = (pad(x, (0, widest - x.shape[-1])) for x in (query, key, value))
    return _Attention.apply(*padded, None, terms, 0)[..., :dim]


def attend_packed(packed: Tensor, kv_heads: int, terms: AttentionTerms, angles: tuple[Tensor, Tensor]) -> Tensor:
    """`attend` of queries, keys and values side by side: packed (rows, tokens, heads + 2 kv_heads, dim)."""
    return _Attention.apply(packed, None, None, angles, terms, kv_heads)


def _as_rows(x: Tensor) -> Tensor:
    """All but the last dimension as one, as the kernels have it; a gradient may come expanded."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).contiguous()


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        rows = _as_rows(x)
        added = None if delta is None else _as_rows(delta)
        total, normed, scales = ops.add_rms_norm(rows, added, weight, eps, dtype)
        total = x.view_as(x) if delta is None else total.view(x.shape)
        ctx.save_for_backward(total, weight, scales)
        ctx.delta_dtype = None if delta is None else delta.dtype
        ctx.set_materialize_grads(False)
        return total, normed.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        total, weight, scales = ctx.saved_tensors
        of_total, of_normed = grads
        if of_normed is None:
            return of_total, None if ctx.delta_dtype is None else of_total.to(ctx.delta_dtype), None, None, None
        rows = _as_rows(total)
        of_total = None if of_total is None else _as_rows(of_total)
        of_x, of_delta, of_weight = ops.add_rms_norm_backward(
            of_total, _as_rows(of_normed), rows, weight, scales, ctx.delta_dtype
        )
        of_x = of_x.view(total.shape)
        if ctx.delta_dtype is None:
            of_delta = None
        else:
            of_delta = of_x if ctx.delta_dtype == total.dtype else of_delta.view(total.shape)
        return of_x, of_delta, of_weight if ctx.needs_input_grad[2] else None, None, None


def add_rms_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """x + delta in the type of x, and its RMSNorm over the last dimension, times weight, as `dtype`."""
    return _AddRMSNorm.apply(x, delta, weight, eps, dtype)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packed: Tensor) -> Tensor:
        rows = _as_rows(packed)
        ctx.save_for_backward(packed)
        return ops.swiglu(*rows.chunk(2, dim=-1)).view(*packed.shape[:-1], packed.shape[-1] // 2)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (packed,) = ctx.saved_tensors
        rows = _as_rows(packed)
        result = torch.empty_like(rows)
        grad = _as_rows(grads[0])
        ops.swiglu_backward(grad, *rows.chunk(2, dim=-1), *result.chunk(2, dim=-1))
        return result.view(packed.shape)


def swiglu(packed: Tensor) -> Tensor:
    """silu(gate) * up of both side by side: packed (..., 2 x width), gate first; (..., width)."""
    return _SwiGLU.apply(packed)
