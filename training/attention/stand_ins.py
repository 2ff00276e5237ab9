"""What takes the place of an attention kernel when a step is traced on fake tensors (`memory/trace.py`).

A stand-in computes nothing. It makes the tensors that the real kernel makes, and keeps for the backward pass what the
real one keeps. CUDA's kernels apply dropout themselves. A CPU's cannot, so PyTorch falls back to plain products when
there is attention dropout, and those run as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import repeat_kv

from training.attention import cpu


@dataclass(frozen=True)
class StandIn:
    """The memory of one way to compute attention."""

    name: str
    kept: str
    """What the backward pass needs besides queries, keys, values and output, in words."""
    attend: Callable[..., tuple[torch.Tensor, None]] | None
    """Attention function in the form of transformers', with `drops_out_by_itself`; None: the model's own eager one."""
    implementation: str | None = None
    """A kernel that runs on fake tensors itself, by its name in transformers, in place of `attend`."""
    has_mask: bool = False
    """Whether the model makes one boolean mask, (rows, 1, seq_len, seq_len), and hands it to every layer."""


# An operator, since selective checkpointing (`training/activations`) keeps the outputs of operators, by name.
_library = torch.library.Library("redline", "FRAGMENT")
_library.define("attention_stand_in(Tensor query, Tensor value) -> (Tensor, Tensor)")


def _make_outputs(query: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and log-sum-exp."""
    batch, heads, seq_len, _ = query.shape
    out = query.new_empty((batch, seq_len, heads, value.shape[-1])).transpose(1, 2)  # as kernels lay it out
    return out, query.new_empty(query.shape[:3], dtype=torch.float32)


_library.impl("attention_stand_in", _make_outputs, "CompositeExplicitAutograd")  # fake tensors, real ones in tests


class _Kernel(torch.autograd.Function):
    """Attention that computes nothing and keeps for backward what FlashAttention does (and a bias, when it has one)."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: Any) -> torch.Tensor:
        out, log_sum_exp = torch.ops.redline.attention_stand_in(query, value)
        ctx.save_for_backward(query, key, value, out, log_sum_exp, bias)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _flash(
    module: nn.Module, query: Any, key: Any, value: Any, mask: Any, *, drops_out_by_itself: bool, **settings: Any
) -> tuple[torch.Tensor, None]:
    query, key, value = _in_compute_dtype(query, key, value)
    if (dropout := settings.get("dropout", 0.0)) and not drops_out_by_itself:
        return _multiply(query, key, value, dropout, None), None
    return _Kernel.apply(query, key, value, None).transpose(1, 2).contiguous(), None


def _masked(
    module: nn.Module, query: Any, key: Any, value: Any, mask: Any, *, drops_out_by_itself: bool, **settings: Any
) -> tuple[torch.Tensor, None]:
    query, key, value = _in_compute_dtype(query, key, value)
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)  # as SDPA does; of a single head it is a view
    shape = (query.shape[0], 1, query.shape[2], key.shape[2])
    if (dropout := settings.get("dropout", 0.0)) and not drops_out_by_itself:
        return _multiply(query, key, value, dropout, query.new_empty(shape, dtype=torch.bool)), None
    return _Kernel.apply(query, key, value, query.new_empty(shape)).transpose(1, 2).contiguous(), None


def _multiply(query: Any, key: Any, value: Any, dropout: float, mask: torch.Tensor | None) -> torch.Tensor:
    """SDPA without a fused kernel, operator by operator, outside autocast as there."""
    with torch.autocast("cpu", enabled=False):
        plain = torch.ops.aten._scaled_dot_product_attention_math
        out = plain(query, key, value, mask, dropout, mask is None, enable_gqa=key.shape[1] != query.shape[1])[0]
    return out.transpose(1, 2).contiguous()


def _in_compute_dtype(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Attention is on autocast's list: it gets its inputs in the lower precision."""
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    return tuple(t.to(torch.get_autocast_dtype("cpu")) for t in tensors)


DOCUMENTS = StandIn(cpu.NAME, "4 bytes per head and query (the log-sum-exp)", None, implementation=cpu.NAME)
FLASH = StandIn("flash", "4 bytes per head and query (the log-sum-exp)", _flash)
MASKED = StandIn(
    "masked",
    "the log-sum-exp; keys and values repeated to all heads; a bias of seq_len^2 per row, 2 bytes each",
    _masked,
    has_mask=True,
)
EAGER = StandIn("eager", "scores and weights, seq_len^2 per head and row, fp32 and bf16", None)
