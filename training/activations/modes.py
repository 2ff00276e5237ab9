"""What of a layer's forward pass the backward pass computes again: the modes of `perf.activation_checkpointing`.

Each mode is one object in `MODES`: builder, planner, advice and tables ask it. FLOPs are counted as the layers of a
model are set. Checkpointing is torch's non-reentrant one (`torch.utils.checkpoint`); `selective` keeps the outputs of
matrix products and of attention (`kept_products.py`). This module is imported before torch, so it imports torch only
when a mode is applied.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from data_prep.errors import UserError

AUTO = "auto"
"""The first of `MODES` whose planned peak fits in memory (`training/run/checkpointing.py`)."""
EVERY = re.compile(r"every_([2-9]|[1-9]\d+)")


@dataclass(frozen=True)
class Checkpointing:
    """One mode of activation checkpointing."""

    name: str
    keeps: str
    """What is left for the backward pass, in words."""
    every: int = 0
    """Of so many decoder layers one is computed again, beginning with the first; 0: of none."""
    keeps_products: bool = False
    """Whether the outputs of matrix products and attention are kept, and only the rest is computed again."""
    options: tuple[tuple[str, Any], ...] = ()
    """Arguments of `torch.utils.checkpoint.checkpoint`."""

    def share_products(self, num_layers: int) -> float:
        """The share of the layers whose matrix products and attention are computed again, 0 to 1."""
        if not self.every or self.keeps_products:
            return 0.0
        return -(-num_layers // self.every) / max(num_layers, 1)

    def apply(self, model: Any) -> None:
        """Set `model` (of transformers, or peft's wrapper of one) to this mode, whatever it was set to before.

        Raises UserError where the layers of the model cannot be told apart for `every_N`.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        if not self.every:
            disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
            disable()
            return
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False, **self._context(), **dict(self.options)})
        # transformers has the embeddings require gradients, which reentrant checkpointing alone needs: below the lowest
        # adapter it costs a backward pass for nothing.
        model.disable_input_require_grads()
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        if self.every > 1 and not layers:
            raise UserError(
                f"perf.activation_checkpointing: {self.name} is not possible: the layers of {type(model).__name__} are "
                "not checkpointed one by one: use full"
            )
        for index, layer in enumerate(layers):
            layer.gradient_checkpointing = index % self.every == 0

    def _context(self) -> dict[str, Any]:
        if not self.keeps_products:
            return {}
        from training.activations.kept_products import build_contexts  # torch

        return {"context_fn": build_contexts}


OFF = Checkpointing("off", "all activations")
FULL = Checkpointing("full", "the input of each layer", every=1)


def _build_every(number: int) -> Checkpointing:
    return Checkpointing(
        f"every_{number}", f"all activations, but of one layer in {number} its input only", every=number
    )


MODES = (
    OFF,
    Checkpointing(
        "selective",
        "the input of each layer, and the outputs of its matrix products and attention",
        every=1,
        keeps_products=True,
    ),
    _build_every(4),
    _build_every(2),
    FULL,
)
"""In the order of what they compute again."""


def find_checkpointing(name: str, options: Mapping[str, Any] | None = None) -> Checkpointing:
    """The mode of this name, with `options` for `torch.utils.checkpoint.checkpoint`. Raises ValueError for no mode."""
    mode = next((mode for mode in MODES if mode.name == name), None)
    if mode is None and (match := EVERY.fullmatch(name)):
        mode = _build_every(int(match[1]))
    if mode is None:
        names = ", ".join([OFF.name, AUTO, *(mode.name for mode in MODES[1:])])
        raise ValueError(f"{name!r} is none of {names}, or every_N with another N from 2 on")
    return replace(mode, options=tuple((options or {}).items()))


def check_name(name: str) -> str:
    """`name`, if it is `auto` or a mode. Raises ValueError."""
    return name if name == AUTO else find_checkpointing(name).name
