"""The model of a recipe as a plan needs it: every shape and dtype, nothing allocated."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from .build import build_model

if TYPE_CHECKING:
    from training.config import Config


def build_planned_model(config: Config, dtype: torch.dtype, four_bit: bool) -> Any:
    """The recipe's model on the meta device. Kernels are neither at hand nor needed: the plan stands in for them."""
    eager = config.model.attn_implementation == "eager"
    log = logging.getLogger("redline.models")
    level = log.level
    log.setLevel(logging.WARNING)  # what a run says of its model would be said of none
    try:
        return _build(config, dtype, four_bit, eager)
    finally:
        log.setLevel(level)


def _build(config: Config, dtype: torch.dtype, four_bit: bool, eager: bool) -> Any:
    return build_model(
        config.model.model_copy(update={"attn_implementation": "eager" if eager else "sdpa"}),
        config.adapter.model_copy(update={"load_in_4bit": four_bit}),
        vocab_size=config.tokenizer.vocab_size if config.tokenizer.path is None else 1,  # 1: keep the model's own
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        device_type="cpu",
        dtype=dtype,
        packed=False,
        meta=True,
    )
