"""The model of a recipe as a plan needs it: every shape and dtype, nothing allocated."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from training.attention.kernels import Compute

from .build import build_model
from .scratch import TokenizerFacts

if TYPE_CHECKING:
    from training.config import Config


def build_planned_model(config: Config, dtype: torch.dtype, four_bit: bool) -> Any:
    """The recipe's model on the meta device. Kernels are neither at hand nor needed: the plan stands in for them."""
    log = logging.getLogger("redline.models")
    level = log.level
    log.setLevel(logging.WARNING)  # what a run says of its model would be said of none
    try:
        return build_model(
            config.model.model_copy(update={"attn_implementation": "auto"}),
            config.adapter.model_copy(update={"load_in_4bit": four_bit}),
            TokenizerFacts(config.tokenizer.vocab_size if config.tokenizer.path is None else 1),  # 1: the model's own
            Compute("cpu", dtype, packed=False),
            meta=True,
        )
    finally:
        log.setLevel(level)
