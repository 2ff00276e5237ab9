"""The loss of a causal model without its logits, in place of the model's own head and loss function.

The model's code stays as it is. Where a forward pass has labels, the output embedding (`lm_head`) returns the loss of
the hidden states that it is called with in place of logits, the model's `loss_function` hands it on, and the output
gets logits of width 0. The loss comes out of the call of the head, so whatever hangs on that call works unchanged:
ZeRO-3 gathers the weight, DDP sees it used, hooks on its gradient run. Without labels, as in generation, nothing
differs.

A model can have it if its logits are the output of its head as it is: a cap or a scale on logits (`LOGIT_CHANGES`) is
an obstacle, and so is a head that is neither a Linear layer nor one with a LoRA adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn.functional import pad

from training.loss.kernels import LossKernel
from training.loss.terms import IGNORE, PLAIN, LossTerms

# Keys of a config that change logits between the head and the loss, and the values that change nothing.
LOGIT_CHANGES: dict[str, tuple[Any, ...]] = {
    "final_logit_softcapping": (None,),
    "logit_scale": (None, 1.0),
    "logits_scaling": (None, 1.0),
    "output_multiplier_scale": (None, 1.0),
    "lm_head_multiplier": (None, 1.0),
}
ATTRIBUTE = "redline_loss_head"


def find_obstacle(model: nn.Module) -> str | None:
    """What keeps `model` from computing its loss without logits; None: nothing."""
    base = _find_base(model)
    head = _find_head(base)
    if isinstance(head, LoraLinear):
        obstacle = _find_lora_obstacle(head)
    else:
        obstacle = None if type(head) is nn.Linear else f"its head is a {type(head).__name__}, no Linear layer"
    config: Any = getattr(base, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    changes = (f"{key} = {getattr(config, key)} changes its logits" for key, harmless in LOGIT_CHANGES.items()
               if getattr(config, key, None) not in harmless)  # fmt: skip
    return obstacle or next(changes, None)


def _find_lora_obstacle(head: LoraLinear) -> str | None:
    if len(head.active_adapters) != 1 or type(head.get_base_layer()) is not nn.Linear:
        return "the adapter of its head is no single one on a Linear layer"
    name = head.active_adapters[0]
    if getattr(head.lora_dropout[name], "p", 0.0):
        return "the adapter of its head has dropout (adapter.dropout)"
    return "the adapter of its head is DoRA" if name in head.lora_variant else None


class LossHead:
    """Replaces the loss of one model from `install` on.

    model: a causal model of transformers or peft's wrapper of one, not yet wrapped by an engine; `find_obstacle` is
    None for it. is_training: whether `terms` count; without them the loss is the plain cross-entropy (evaluation).
    """

    def __init__(self, model: nn.Module, kernel: LossKernel, terms: LossTerms, is_training: Callable[[], bool]) -> None:
        self.kernel = kernel
        self._terms = terms
        self._is_training = is_training
        self._model: Any = _find_base(model)
        head = _find_head(self._model)
        assert isinstance(head, nn.Linear | LoraLinear)
        self._head: Any = head
        self._labels: Tensor | None = None  # of the forward pass under way
        self._num_items: Any = None
        self._has_loss = False
        self._compute_eagerly: Any = torch.compiler.disable(self._compute)

    def install(self) -> None:
        """Replace the loss."""
        self._project, self._plain_loss = self._head.forward, self._model.loss_function
        self._head.forward = self._run_head
        self._model.loss_function = self._get_loss
        self._model.register_forward_pre_hook(self._begin, with_kwargs=True)
        self._model.register_forward_hook(self._end, with_kwargs=True, always_call=True)
        setattr(self._model, ATTRIBUTE, self)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._labels, self._has_loss = _shift_labels(kwargs), False
        self._num_items = kwargs.get("num_items_in_batch")

    def _end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._has_loss and self._labels is not None and hasattr(output, "logits"):
            output.logits = output.logits.new_empty((*self._labels.shape, 0))
        self._labels, self._num_items, self._has_loss = None, None, False

    def _run_head(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._labels is None or self._labels.shape != hidden.shape[:-1]:
            return self._project(hidden, *args, **kwargs)
        self._has_loss = True
        return self._compute_eagerly(hidden, self._labels).reshape(1, 1, 1)

    def _get_loss(self, logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return logits.sum() if self._has_loss else self._plain_loss(logits, *args, **kwargs)

    def _compute(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """The mean over the tokens with loss, or their sum over `num_items_in_batch`."""
        labels = labels.flatten().to(hidden.device)
        num_items = (labels != IGNORE).sum() if self._num_items is None else self._num_items
        if isinstance(num_items, Tensor):
            num_items = num_items.to(hidden.device)
        terms = replace(self._terms if self._is_training() else PLAIN, scale=1 / num_items)
        weight, bias = _find_weight(self._head)
        return self.kernel.compute(hidden.flatten(0, -2), weight, labels, bias, terms)


def find_loss_head(model: nn.Module) -> LossHead | None:
    """What was installed in this model, None where its own loss is in place."""
    return getattr(_find_base(model), ATTRIBUTE, None)


def _find_base(model: nn.Module) -> nn.Module:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _find_head(model: nn.Module) -> nn.Module | None:
    """The module that computes the logits, the trained copy where an adapter keeps one beside the original."""
    get: Callable[[], nn.Module | None] | None = getattr(model, "get_output_embeddings", None)
    head = get() if get is not None else None
    if isinstance(head, ModulesToSaveWrapper):
        return head.modules_to_save[head.active_adapters[0]]
    return head


def _find_weight(head: nn.Linear | LoraLinear) -> tuple[Tensor, Tensor | None]:
    """Weight (vocab_size, hidden_size) and bias; with an adapter the sum of both, through which its gradient flows."""
    if isinstance(head, nn.Linear):
        return head.weight, head.bias
    base, name = head.get_base_layer(), head.active_adapters[0]
    assert isinstance(base, nn.Linear)
    return base.weight + head.get_delta_weight(name).to(base.weight.dtype), base.bias


def _shift_labels(kwargs: dict[str, Any]) -> Tensor | None:
    """The label of each position, which is the next token's; None where the pass has no loss for every position."""
    labels, shifted, keep = kwargs.get("labels"), kwargs.get("shift_labels"), kwargs.get("logits_to_keep", 0)
    if labels is None or isinstance(keep, Tensor) or keep:
        return None
    return shifted if shifted is not None else pad(labels, (0, 1), value=IGNORE)[..., 1:]
