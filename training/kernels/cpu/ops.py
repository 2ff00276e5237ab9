"""Declares `torch.ops.redline.*`: schemas, and what they make of fake tensors. `build.py` loads what computes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SCHEMAS = (
    "attention(Tensor query, Tensor key, Tensor value, Tensor? cos, Tensor? sin, Tensor starts, Tensor lengths, "
    "float scale, int window) -> (Tensor, Tensor)",
    "attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor? cos, Tensor? sin, Tensor out, "
    "Tensor log_sums, Tensor starts, Tensor lengths, float scale, int window, Tensor(a!) query_grad, "
    "Tensor(b!) key_grad, Tensor(c!) value_grad) -> ()",
    "add_rms_norm(Tensor x, Tensor? delta, Tensor weight, float eps, ScalarType dtype) -> (Tensor, Tensor, Tensor)",
    "add_rms_norm_backward(Tensor? total_grad, Tensor grad, Tensor total, Tensor weight, Tensor scales, "
    "ScalarType? delta) -> (Tensor, Tensor, Tensor)",
    "swiglu(Tensor gate, Tensor up) -> Tensor",
    "swiglu_backward(Tensor grad, Tensor gate, Tensor up, Tensor(a!) gate_grad, Tensor(b!) up_grad) -> ()",
    "cross_entropy_(Tensor(a!) logits, Tensor labels, float smoothing, float z_loss, float scale, bool wanted) -> "
    "Tensor",
)

_library = torch.library.Library("redline", "DEF")  # lives as long as its operators
for _schema in SCHEMAS:
    _library.define(_schema)


@torch.library.register_fake("redline::attention", lib=_library)
def _attention(query: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    rows, tokens, heads, _ = query.shape
    out = query.new_empty(query.shape)
    return out, query.new_empty((rows, heads, tokens), dtype=torch.float32)


@torch.library.register_fake("redline::attention_backward", lib=_library)
def _attention_backward(*args: Any) -> None:
    return None


@torch.library.register_fake("redline::add_rms_norm", lib=_library)
def _add_rms_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    total = x.new_empty((0,)) if delta is None else torch.empty_like(x)
    return total, x.new_empty(x.shape, dtype=dtype), x.new_empty((len(x),), dtype=torch.float32)


@torch.library.register_fake("redline::add_rms_norm_backward", lib=_library)
def _add_rms_norm_backward(
    total_grad: Tensor | None,
    grad: Tensor,
    total: Tensor,
    weight: Tensor,
    scales: Tensor,
    delta: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    of_delta = total.new_empty((0,)) if delta in (None, total.dtype) else torch.empty_like(total, dtype=delta)
    return torch.empty_like(total), of_delta, torch.empty_like(weight)


@torch.library.register_fake("redline::swiglu", lib=_library)
def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


@torch.library.register_fake("redline::swiglu_backward", lib=_library)
def _swiglu_backward(*args: Any) -> None:
    return None


@torch.library.register_fake("redline::cross_entropy_", lib=_library)
def _cross_entropy(logits: Tensor, *args: Any) -> Tensor:
    return logits.new_empty((len(logits),), dtype=torch.float32)
