"""Which attention implementation a run uses, and why.

`auto` takes FlashAttention 3, then 2, where the package is installed and device, dtype and compute capability fit, else
PyTorch's SDPA. An implementation asked for by name is used or refused, never replaced. `flash-attn` stays optional: it
is looked up, never imported here.
"""

import difflib
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.import_utils import (
    is_flash_attn_2_available,
    is_flash_attn_3_available,
    is_flash_attn_4_available,
)

from data_prep.errors import UserError

logger = logging.getLogger("redline.models")


@dataclass(frozen=True)
class FlashPackage:
    """One FlashAttention generation: how to get it and the CUDA major compute capabilities it has kernels for."""

    install: str
    is_available: Callable[[], bool]
    min_major: int
    max_major: int


# Capabilities: README of Dao-AILab/flash-attention (2: Ampere and later, 3: Ampere and Hopper, 4: Hopper and later).
FLASH_PACKAGES = {
    "flash_attention_3": FlashPackage(
        "build flash-attn-3 from the hopper/ folder of Dao-AILab/flash-attention", is_flash_attn_3_available, 8, 9
    ),
    "flash_attention_2": FlashPackage("pip install -r requirements-gpu.txt", is_flash_attn_2_available, 8, 12),
    "flash_attention_4": FlashPackage("pip install flash-attn-4", is_flash_attn_4_available, 9, 12),
}
AUTO_ORDER = ("flash_attention_3", "flash_attention_2")


def choose_attention(requested: str, *, device_type: str, dtype: torch.dtype, packed: bool) -> tuple[str, str]:
    """Name for HF's `attn_implementation`, and the reason in words; logs both.

    `dtype` is what the matmuls compute in (bfloat16 under bf16 autocast although the parameters are float32).
    Raises UserError when `requested` is unknown or cannot run here, naming the obstacle and what to install.
    """
    if requested == "auto":
        implementation, reason = _choose_best(device_type, dtype, packed)
    else:
        check_attention(requested, device_type, dtype)
        implementation, reason = requested, "asked for"
    logger.info("attention: %s (%s)", implementation, reason)
    return implementation, reason


def check_attention(requested: str, device_type: str, dtype: torch.dtype) -> None:
    """Raises UserError when `requested` is unknown or cannot run here, naming the obstacle and what to install."""
    obstacle = None if requested == "auto" else _find_obstacle(requested, device_type, dtype)
    if obstacle:
        raise UserError(f"model.attn_implementation: {requested!r} cannot be used: {obstacle}; or use 'auto'")


def find_usable(device_type: str, dtype: torch.dtype) -> list[str]:
    """Implementations that can run here, the one that `auto` takes first."""
    return [name for name in (*AUTO_ORDER, "sdpa", "eager") if _find_obstacle(name, device_type, dtype) is None]


def takes_varlen(model: torch.nn.Module) -> bool:
    """Whether `forward` hands unknown arguments on, as models do whose attention takes `cu_seq_lens_q` and its kin."""
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    parameters = inspect.signature(inner.forward).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _choose_best(device_type: str, dtype: torch.dtype, packed: bool) -> tuple[str, str]:
    obstacles = []
    for name in AUTO_ORDER:
        obstacle = _find_obstacle(name, device_type, dtype)
        if obstacle is None:
            return name, "best that is installed and fits this device"
        obstacles.append(f"no {name}: {obstacle}")
    if obstacles[0].split(": ", 1)[1] == obstacles[1].split(": ", 1)[1]:
        obstacles = [f"no FlashAttention: {obstacles[0].split(': ', 1)[1]}"]
    if packed:
        obstacles.append("packed rows get a block mask of seq_len x seq_len")
    return "sdpa", "; ".join(obstacles)


def _find_obstacle(name: str, device_type: str, dtype: torch.dtype) -> str | None:
    """What keeps `name` from running here, or None."""
    if name in ("eager", "sdpa"):
        return None
    if name in FLASH_PACKAGES:
        return _find_flash_obstacle(FLASH_PACKAGES[name], device_type, dtype)
    if name not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        known = ["auto", "eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()]
        nearest = difflib.get_close_matches(name, known, n=1)
        return f"unknown, did you mean {nearest[0]!r}?" if nearest else f"unknown, one of {', '.join(known)}"
    if name == "flex_attention" and device_type != "cuda":
        return "flex attention has no backward pass outside CUDA"
    return None


def _find_flash_obstacle(package: FlashPackage, device_type: str, dtype: torch.dtype) -> str | None:
    if device_type != "cuda":
        return f"it needs a CUDA device and this run is on {device_type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in float16 or bfloat16 and this run in {str(dtype).removeprefix('torch.')}"
    major, minor = torch.cuda.get_device_capability()
    if not package.min_major <= major <= package.max_major:
        wanted = f"{package.min_major}.x to {package.max_major}.x"
        return f"it has kernels for compute capability {wanted} and this device is {major}.{minor}"
    if not package.is_available():
        return f"not installed ({package.install})"
    return None
