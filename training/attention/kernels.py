"""The attention kernels that a run can use: one object each, with every fact that the project asks of a kernel.

A kernel's name is its name in transformers (`attn_implementation`). `flash-attn` stays optional: it is looked up, never
imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils.import_utils import (
    is_flash_attn_2_available,
    is_flash_attn_3_available,
    is_flash_attn_4_available,
)

from training.attention import cpu, torch_varlen
from training.attention.pairs import Attended
from training.attention.stand_ins import DOCUMENTS, EAGER, FLASH, MASKED, StandIn
from training.kernels.cpu import build


@dataclass(frozen=True)
class Compute:
    """Where and in what a run computes."""

    device_type: str
    """`cuda` or `cpu`."""
    dtype: torch.dtype
    """Of matmuls: bfloat16 under bf16 autocast, although the parameters are float32."""
    packed: bool
    """Whether a row holds several documents."""


@dataclass(frozen=True)
class AttentionKernel:
    """A kernel that computes allowed pairs only and runs everywhere; each kind overrides where it differs."""

    name: str
    automatic: bool = True
    """Whether `attn_implementation: auto` may take it; the order is that of `KERNELS`."""
    family: str = ""
    """Common name of kernels that share an obstacle."""
    needs_cu_seqlens: bool = False
    """Whether it is given the boundaries of documents with the batch; the others read a mask."""
    recomputes_scores: bool = True
    """Whether its backward pass computes the scores again and all gradients at once, as FlashAttention does."""

    def obstacle(self, compute: Compute, model_class: Any = None) -> str | None:
        """What keeps it from running so, in words; None: nothing. model_class: as of `find_model_class`."""
        return self.obstacle_here(compute) or self.obstacle_in(model_class)

    def obstacle_here(self, compute: Compute) -> str | None:
        """What on this machine keeps it from running."""
        return None

    def is_preferred(self, compute: Compute) -> bool:
        """Whether `auto` takes it before all that are not, whatever the order."""
        return False

    def prepare(self) -> str | None:
        """Get it ready to run, which may take a while; what kept it from that, in words, None: it is ready."""
        return None

    def obstacle_in(self, model_class: Any) -> str | None:
        """What in this class of models keeps it from running, as transformers judges; None also for an unknown one."""
        if model_class is None or self.runs_in(model_class):
            return None
        return f"{model_class.__name__} of transformers does not run with it"

    def runs_in(self, model_class: Any) -> bool:
        """Whether transformers builds models of this class with it."""
        return True

    def executed_pairs(self, attended: Attended) -> int:
        """Query-key pairs that it computes. Blocks on the diagonal, which are computed whole, are left out."""
        return attended.pairs

    def stand_in(self, *, masked: bool) -> StandIn:
        """What it keeps for the backward pass. masked: whether rows are packed or padded."""
        return FLASH


@dataclass(frozen=True)
class Eager(AttentionKernel):
    """Plain products, scores and weights in full."""

    recomputes_scores: bool = False

    def executed_pairs(self, attended: Attended) -> int:
        """All pairs of each row."""
        return attended.square

    def stand_in(self, *, masked: bool) -> StandIn:
        """The model's own function, scores and all."""
        return EAGER


@dataclass(frozen=True)
class Sdpa(AttentionKernel):
    """PyTorch's `scaled_dot_product_attention`: is told to be causal where rows need no mask, else gets one."""

    def runs_in(self, model_class: Any) -> bool:
        """Not where scores are capped (Gemma 2) or have sinks (gpt-oss)."""
        return bool(model_class._supports_sdpa)

    def executed_pairs(self, attended: Attended) -> int:
        """The causal half, whose other blocks are skipped, or with a mask all pairs of each row."""
        return attended.pairs if attended.is_whole_rows else attended.square

    def stand_in(self, *, masked: bool) -> StandIn:
        """A mask is kept with all that comes of it."""
        return MASKED if masked else FLASH


@dataclass(frozen=True)
class Flash(AttentionKernel):
    """One generation of FlashAttention and the major CUDA compute capabilities that it has kernels for.

    Capabilities: README of Dao-AILab/flash-attention (2: Ampere and later, 3: Ampere and Hopper, 4: Hopper and later).
    """

    family: str = "FlashAttention"
    needs_cu_seqlens: bool = True
    install: str = ""
    is_available: Callable[[], bool] = bool
    majors: tuple[int, int] = (0, 0)
    """First and last."""
    is_fastest: bool = False
    """Whether nothing is faster where it runs."""

    def obstacle_here(self, compute: Compute) -> str | None:
        """Device, dtype, compute capability and package, in this order."""
        if compute.device_type != "cuda":
            return f"it needs a CUDA device and this run is on {compute.device_type}"
        if compute.dtype not in (torch.float16, torch.bfloat16):
            return f"it computes in float16 or bfloat16 and this run in {str(compute.dtype).removeprefix('torch.')}"
        major, minor = torch.cuda.get_device_capability()
        first, last = self.majors
        if not first <= major <= last:
            wanted = f"{first}.x to {last}.x"
            return f"it has kernels for compute capability {wanted} and this device is {major}.{minor}"
        return None if self.is_available() else f"not installed ({self.install})"

    def is_preferred(self, compute: Compute) -> bool:
        """As its field says."""
        return self.is_fastest

    def runs_in(self, model_class: Any) -> bool:
        """Some classes allow some generations only."""
        allowed = model_class._compatible_flash_implementations
        return bool(model_class._supports_flash_attn and (allowed is None or self.name in allowed))


@dataclass(frozen=True)
class TorchVarlen(Flash):
    """FlashAttention 2 as PyTorch has it (`torch.nn.attention.varlen`), whole rows by SDPA."""

    def is_preferred(self, compute: Compute) -> bool:
        """Where a row is one document and SDPA takes cuDNN first: compute capability 9.0 and 10.0."""
        return not compute.packed and torch.cuda.get_device_capability() in ((9, 0), (10, 0))

    def runs_in(self, model_class: Any) -> bool:
        """Where SDPA computes what FlashAttention does: no caps, no sinks, no masks of the model's own."""
        return _needs_no_mask(model_class)


def _needs_no_mask(model_class: Any) -> bool:
    return bool(model_class._supports_sdpa and model_class._supports_flash_attn)


@dataclass(frozen=True)
class DocumentKernel(AttentionKernel):
    """Ours for CPUs: C++ that goes through each document on its own."""

    needs_cu_seqlens: bool = True

    def obstacle_here(self, compute: Compute) -> str | None:
        """Device, dtype and what it takes to build it."""
        if compute.device_type != "cpu":
            return f"it computes on CPUs and this run is on {compute.device_type}"
        if compute.dtype not in (torch.float32, torch.bfloat16):
            return f"it computes in float32 or bfloat16 and this run in {str(compute.dtype).removeprefix('torch.')}"
        return build.find_obstacle()

    def prepare(self) -> str | None:
        """Built once per machine, half a minute."""
        return build.load()

    def runs_in(self, model_class: Any) -> bool:
        """Where SDPA computes what FlashAttention does: no caps, no sinks, no masks of the model's own."""
        return _needs_no_mask(model_class)

    def stand_in(self, *, masked: bool) -> StandIn:
        """Itself, on fake tensors."""
        return DOCUMENTS


@dataclass(frozen=True)
class Flex(AttentionKernel):
    """PyTorch's flex attention, compiled for the mask of the batch."""

    def obstacle_here(self, compute: Compute) -> str | None:
        """PyTorch has its backward pass for CUDA only."""
        return None if compute.device_type == "cuda" else "flex attention has no backward pass outside CUDA"

    def runs_in(self, model_class: Any) -> bool:
        """As the class says."""
        return bool(model_class._supports_flex_attn)


KERNELS: tuple[AttentionKernel, ...] = (
    Flash(
        "flash_attention_3",
        install="build flash-attn-3 from the hopper/ folder of Dao-AILab/flash-attention",
        is_available=is_flash_attn_3_available,
        majors=(8, 9),
        is_fastest=True,
    ),
    Flash(
        "flash_attention_2",
        install="pip install -r requirements-gpu.txt",
        is_available=is_flash_attn_2_available,
        majors=(8, 12),
    ),
    TorchVarlen(
        torch_varlen.NAME,
        install="this build of PyTorch has no FlashAttention",
        is_available=torch.backends.cuda.is_flash_attention_available,
        majors=(8, 12),
    ),
    DocumentKernel(cpu.NAME),
    Sdpa("sdpa"),
    Eager("eager"),
    Flash(
        "flash_attention_4",
        automatic=False,
        install="pip install flash-attn-4",
        is_available=is_flash_attn_4_available,
        majors=(9, 12),
    ),
    Flex("flex_attention", automatic=False),
)


def list_names() -> list[str]:
    """Values of `model.attn_implementation` besides `auto`."""
    return [kernel.name for kernel in KERNELS]


def find_kernel(name: str) -> AttentionKernel:
    """The kernel of this name. One that is not in `KERNELS`, which a model of somebody else's script may have, is taken
    for one that skips what is masked and is given the boundaries of documents."""
    found = next((kernel for kernel in KERNELS if kernel.name == name), None)
    return found or AttentionKernel(name, automatic=False, needs_cu_seqlens=True)
