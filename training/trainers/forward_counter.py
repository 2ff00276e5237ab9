"""What the forward passes of a step compute, where the batch does not say: counted as the models are called.

A forward pre-hook on each model that the trainer calls, as wrapped as it is called, reads the shape of the batch and
where its documents are. A pass with gradients counts with its backward pass; one without, as of DPO's reference model,
costs FLOPs and trains on no token. Nothing waits for a device: what is small and says where documents are is copied to
the host, and counted when the step is over.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from training.metrics import names
from training.metrics.document_lengths import BatchShape
from training.metrics.flops import ModelFlops
from training.metrics.throughput import Forward

logger = logging.getLogger("redline.train")


class ForwardCounter:
    """Hooks on the models of one trainer, from `start` to `stop`."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._handles: list[RemovableHandle] = []
        self._spans: dict[nn.Module, AbstractContextManager[None]] = {}  # of passes under way that nobody else times

    def start(self) -> None:
        """After the models were prepared; a second call replaces the hooks of the first."""
        self.stop()
        if self._trainer.meter is None:
            return
        for module in find_models(self._trainer):
            hook = self._build_hook(self._trainer.accelerator.unwrap_model(module))
            self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._end_span, always_call=True))

    def _begin_span(self, module: nn.Module, meter: Any) -> bool:
        """Whether this pass is one of a training step. `compute_loss` is timed as `forward`; a `training_step` without
        it, as a subclass may have, is timed here."""
        if meter.timer.phase == names.FORWARD:
            return True
        if meter.timer.phase != names.OTHER or not torch.is_grad_enabled():  # an evaluation, or text that is generated
            return False
        self._spans[module] = span = self._trainer.span(names.FORWARD)
        span.__enter__()
        return True

    def _end_span(self, module: nn.Module, *_: Any) -> None:
        if (span := self._spans.pop(module, None)) is not None:
            span.__exit__(None, None, None)

    def stop(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _build_hook(self, model: nn.Module) -> Any:
        trainer, flops = self._trainer, find_flops(model)

        def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            meter = trainer.meter
            if meter is None or not trainer.is_training or not self._begin_span(module, meter):
                return
            if args and isinstance(args[0], torch.Tensor):
                kwargs = {"input_ids": args[0], **kwargs}
            try:
                shape = BatchShape(kwargs)
            except (KeyError, IndexError):  # no tokens: images, sound
                return
            meter.add_forward(Forward(shape, flops, torch.is_grad_enabled()))

        return count


def find_models(trainer: Any) -> list[nn.Module]:
    """The model as the loop calls it, and any other that the trainer holds (`ref_model`, a teacher)."""
    found = [trainer.model_wrapped]
    inner = {id(trainer.model), *(id(one) for one in trainer.model_wrapped.modules())}
    for value in vars(trainer).values():
        if isinstance(value, nn.Module) and id(value) not in inner and hasattr(value, "forward"):
            inner.update(id(one) for one in value.modules())
            found.append(value)
    return found


def find_flops(model: nn.Module) -> ModelFlops | None:
    """None, with a line in the log, for a model whose FLOPs are not known: it is no causal language model."""
    if not any(getattr(module, "is_causal", False) for module in model.modules()):
        logger.warning("%s: no MFU, since its FLOPs are counted for causal attention only", type(model).__name__)
        return None
    return ModelFlops.from_model(model)
