"""Liger's Triton kernels for the pieces of a layer on CUDA: RMSNorm, RoPE, SwiGLU and their like.

Liger patches the modules of the model at hand, and RoPE and the classes in the file of transformers that it comes
from. The loss is not Liger's: `perf.loss_kernel` chooses it.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from peft import PeftModel
from torch import nn

WITHOUT_LOSS = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def find_obstacle(model: nn.Module) -> str | None:
    """What keeps Liger's kernels from this model on CUDA; None: nothing."""
    if importlib.util.find_spec("liger_kernel") is None:
        return "Liger is not installed (pip install -r requirements-gpu.txt)"
    from liger_kernel.transformers.monkey_patch import (  # pyright: ignore[reportMissingImports]
        MODEL_TYPE_TO_APPLY_LIGER_FN,
    )

    kind = _find_base(model).config.model_type
    return None if kind in MODEL_TYPE_TO_APPLY_LIGER_FN else f"Liger has no kernels for {kind}"


def apply_liger(model: nn.Module) -> None:
    """Patch `model`, or the base of an adapter, in place."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance  # pyright: ignore[reportMissingImports]

    _apply_liger_kernel_to_instance(model=_find_base(model), **WITHOUT_LOSS)


def _find_base(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model
