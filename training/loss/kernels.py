"""The ways to compute the loss of a language model from its last hidden states: one object each in `KERNELS`.

`plain` is the model's own: all logits, then cross-entropy. The others get hidden states and the head's weight and never
hold all logits. Liger and cut-cross-entropy stay optional: they are looked up, and imported only to run.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from torch import Tensor

from training.loss.linear_cross_entropy import linear_cross_entropy
from training.loss.terms import IGNORE, LossTerms


@dataclass(frozen=True)
class LossKernel:
    """One way; what differs between them, each kind overrides."""

    name: str
    """Value of `perf.loss_kernel`."""
    automatic: bool = True
    """Whether `auto` may take it; the order is that of `KERNELS`."""
    needs_logits: bool = False
    """Whether the model computes all logits as always, and nothing is replaced."""
    computes_logits_twice: bool = False
    """Whether the backward pass computes the logits again."""
    holds: str = "logits of one chunk of rows, the head's gradient"
    """What it needs at its peak, in words."""

    def obstacle_here(self, device_type: str) -> str | None:
        """What on this machine keeps it from running; None: nothing."""
        return None

    def obstacle_with(self, terms: LossTerms) -> str | None:
        """What in this loss it cannot compute; None: nothing."""
        return None

    def skips_unlabelled(self, device_type: str) -> bool:
        """Whether positions without loss are left out of the head's matmuls."""
        return False

    def compute(self, hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, terms: LossTerms) -> Tensor:
        """Sum of the losses of all rows x `terms.scale`: a float32 scalar. Shapes as of `linear_cross_entropy`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Chunked(LossKernel):
    """Ours: on every device, with every term."""

    def skips_unlabelled(self, device_type: str) -> bool:
        """On a CPU, where finding them makes no device wait."""
        return device_type == "cpu"

    def compute(self, hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, terms: LossTerms) -> Tensor:
        """See `linear_cross_entropy`."""
        return linear_cross_entropy(hidden, weight, labels, bias, terms)


@dataclass(frozen=True)
class _OfPackage(LossKernel):
    module: str = ""
    requirement: str = ""

    def obstacle_here(self, device_type: str) -> str | None:
        """Triton kernels run on GPUs only."""
        if device_type != "cuda":
            return f"it needs a CUDA device and this run is on {device_type}"
        if importlib.util.find_spec(self.module) is None:
            return f"not installed (pip install {self.requirement})"
        return None


@dataclass(frozen=True)
class Liger(_OfPackage):
    """`LigerFusedLinearCrossEntropyFunction` of liger-kernel (arXiv 2410.10989)."""

    def compute(self, hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, terms: LossTerms) -> Tensor:
        """Gradients of several chunks add up in float32."""
        import torch
        from liger_kernel.transformers.functional import (  # pyright: ignore[reportMissingImports]
            liger_fused_linear_cross_entropy,
        )

        loss = liger_fused_linear_cross_entropy(
            hidden, weight.to(hidden.dtype), labels, bias, ignore_index=IGNORE, lse_square_scale=terms.z_loss,
            label_smoothing=terms.label_smoothing, reduction="sum", accum_dtype=torch.float32,
        )  # fmt: skip
        return loss.float() * terms.scale


@dataclass(frozen=True)
class CutCrossEntropy(_OfPackage):
    """Apple's cut-cross-entropy (arXiv 2411.09009): logits never leave the chip, and are computed a second time."""

    def obstacle_with(self, terms: LossTerms) -> str | None:
        """Its loss is the plain cross-entropy."""
        return None if terms.is_plain else "it has no label smoothing and no z-loss"

    def compute(self, hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, terms: LossTerms) -> Tensor:
        """Every gradient is kept: its filter, which drops small ones, is off."""
        from cut_cross_entropy import (  # pyright: ignore[reportMissingImports]
            linear_cross_entropy as cut_cross_entropy,
        )

        assert bias is None
        loss = cut_cross_entropy(
            hidden, weight.to(hidden.dtype), labels, ignore_index=IGNORE, reduction="sum", filter_eps=None
        )
        return loss.float() * terms.scale


KERNELS: tuple[LossKernel, ...] = (
    Chunked("chunked"),
    LossKernel("plain", needs_logits=True, holds="all logits, a float32 copy and its gradient"),
    Liger("liger", automatic=False, module="liger_kernel", requirement="liger-kernel"),
    CutCrossEntropy(
        "cce", automatic=False, computes_logits_twice=True, module="cut_cross_entropy",
        requirement="cut-cross-entropy", holds="the head's gradient",
    ),
)  # fmt: skip


def list_names() -> list[str]:
    """Values of `perf.loss_kernel` besides `auto`."""
    return [kernel.name for kernel in KERNELS]
