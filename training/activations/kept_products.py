"""The contexts of selective activation checkpointing: which operators' outputs are kept, and how they are given again.

torch's own contexts (`create_selective_checkpoint_contexts`) keep what a policy chooses, and refuse any operator that
runs more often in the recomputation than in the forward pass. Here that holds for kept operators alone: under ZeRO-3
the hooks in a layer gather weights, and in the backward pass they do so in another order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

ATEN = (
    "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "linear", "matmul", "_addmm_activation", "_scaled_mm",
    "_scaled_mm_v2", "_int_mm", "_grouped_mm", "_scaled_grouped_mm", "_scaled_grouped_mm_v2", "mkldnn_linear",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable", "_flash_attention_forward", "_efficient_attention_forward",
    "_cudnn_attention_forward",
)  # fmt: skip
KEPT = frozenset(
    {f"aten::{name}" for name in ATEN}
    # training/kernels/cpu, training/attention/stand_ins.py, training/models/projections.py
    | {"redline::attention", "redline::attention_stand_in", "redline::multiply_frozen"}
    | {"transformers::grouped_mm_fallback", "torch_attn::_varlen_attn", "flex_attention"}
    | {f"flash_attn::_flash_attn{kind}_forward" for kind in ("", "_varlen")}
    | {"flash_attn_3::fwd", "flash_attn_3::_flash_attn_forward"}
)
"""Names of operators, without their overload. One that writes into a given tensor is not kept."""


def is_kept(operator: Any) -> bool:
    """Whether an operator (`OpOverload` or higher-order) is a matrix product or attention, forward."""
    name, _, overload = operator.name().partition(".")
    return name in KEPT and not overload.endswith("out")


def choose_policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """A policy in the form of torch's."""
    return CheckpointPolicy.MUST_SAVE if is_kept(operator) else CheckpointPolicy.PREFER_RECOMPUTE


class _GiveAgain(TorchDispatchMode):
    """For the recomputation: torch's mode for what is kept, nothing for all else."""

    def __init__(self, kept: Any) -> None:
        super().__init__()
        self._kept = kept

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """As torch's own: what is called within may be compiled."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_kept(func):
            return self._kept.__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))


def build_contexts() -> tuple[Any, Any]:
    """The contexts of one call of one layer: for its forward pass, and for its recomputation."""
    forward, recomputation = create_selective_checkpoint_contexts(choose_policy)
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None:
        return forward, recomputation  # a graph is traced: the compiler decides by the policy's marks
    return forward, _GiveAgain(recomputation)
