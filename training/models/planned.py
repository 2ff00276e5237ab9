"""The model of a recipe as a plan needs it: every shape and dtype, nothing allocated."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from training.attention.kernels import Compute
from training.loss.choose import find_named, install_loss

from .build import build_model
from .fused import fuse_layers
from .scratch import TokenizerFacts

if TYPE_CHECKING:
    from training.config import Config


def build_planned_model(config: Config, dtype: torch.dtype, four_bit: bool, fuses: bool = False) -> Any:
    """The recipe's model on the meta device. Kernels are neither at hand nor needed: the plan stands in for them.

    fuses: whether the run's device, attention and partitioning leave layers to be fused, as the recipe wants it.
    """
    log = logging.getLogger("redline.models")
    level = log.level
    log.setLevel(logging.WARNING)  # what a run says of its model would be said of none
    try:
        model = build_model(
            config.model.model_copy(update={"attn_implementation": "auto"}),
            config.adapter.model_copy(update={"load_in_4bit": four_bit}),
            TokenizerFacts(config.tokenizer.vocab_size if config.tokenizer.path is None else 1),  # 1: the model's own
            Compute("cpu", dtype, packed=False),
            meta=True,
        )
        is_compiled = bool(config.training.get("torch_compile")) or config.perf.compile in ("blocks", "model")
        wanted = fuses and config.perf.fused_layers != "off"
        fuse_layers(model, "auto" if wanted else "off", is_compiled=is_compiled, is_planned=True)
        if not config.training.get("use_liger_kernel"):
            _install_planned_loss(model, config.perf.loss_kernel)
        return model
    finally:
        log.setLevel(level)


def _install_planned_loss(model: Any, requested: str) -> None:
    """A kernel of a package that is not at hand is planned as the chunked one, which holds no less."""
    is_plain = requested != "auto" and find_named(requested).needs_logits
    install_loss(model, "plain" if is_plain else "auto", device_type="cpu")
