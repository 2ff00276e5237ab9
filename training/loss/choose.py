"""Which loss kernel a run uses, and why: `perf.loss_kernel`.

`auto` takes the first of `KERNELS` that runs here and in this model. One that is asked for by name is used or refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import nn

from data_prep.errors import UserError
from data_prep.recipe.spelling import find_near
from training.loss import kernels
from training.loss.head import LossHead, find_obstacle
from training.loss.kernels import LossKernel
from training.loss.terms import PLAIN, LossTerms

logger = logging.getLogger("redline.models")


def find_named(requested: str) -> LossKernel:
    """Raises UserError for a name that no kernel has."""
    names = kernels.list_names()
    if requested not in names:
        nearest = find_near(requested, names)
        hint = f"did you mean {nearest!r}?" if nearest else f"use one of auto, {', '.join(names)}"
        raise UserError(f"perf.loss_kernel: {requested!r} is unknown: {hint}")
    return next(kernel for kernel in kernels.KERNELS if kernel.name == requested)


def find_usable(terms: LossTerms, device_type: str) -> list[LossKernel]:
    """What runs on this machine and computes this loss, first what `auto` takes first."""
    return [
        kernel
        for kernel in kernels.KERNELS
        if kernel.obstacle_here(device_type) is None and kernel.obstacle_with(terms) is None
    ]


def check_loss(requested: str, terms: LossTerms, device_type: str) -> None:
    """Raises UserError when `requested` is unknown, or cannot run here or with this loss, whatever the model is."""
    if requested == "auto":
        return
    kernel = find_named(requested)
    if obstacle := kernel.obstacle_here(device_type) or kernel.obstacle_with(terms):
        raise UserError(f"perf.loss_kernel: {requested!r} cannot be used: {obstacle}; or use 'auto'")


def choose_loss(requested: str, model: nn.Module, terms: LossTerms, device_type: str) -> tuple[LossKernel, str]:
    """The kernel, and the reason in words.

    Raises UserError when the one asked for cannot run here, in this model, or with this loss.
    """
    check_loss(requested, terms, device_type)
    reasons = []
    for kernel in kernels.KERNELS:
        if kernel.name != requested and not (requested == "auto" and kernel.automatic):
            continue
        obstacle = kernel.obstacle_here(device_type) or kernel.obstacle_with(terms)
        obstacle = obstacle or (None if kernel.needs_logits else find_obstacle(model))
        if obstacle is None:
            return kernel, "; ".join(reasons) or ("asked for" if requested != "auto" else kernel.holds)
        reasons.append(f"no {kernel.name}: {obstacle}")
    raise UserError(f"perf.loss_kernel: {requested!r} cannot be used: {'; '.join(reasons)}; or use 'auto'")


def install_loss(
    model: nn.Module,
    requested: str,
    terms: LossTerms = PLAIN,
    *,
    device_type: str,
    is_training: Callable[[], bool] | None = None,
) -> LossKernel:
    """Have `model` compute its loss by the kernel that `choose_loss` finds, which see; logs which and why.

    is_training: whether `terms` count; None: while the model is in training mode.
    """
    kernel, reason = choose_loss(requested, model, terms, device_type)
    logger.info("loss: %s (%s)", kernel.name, reason)
    if not kernel.needs_logits:
        LossHead(model, kernel, terms, is_training or (lambda: model.training)).install()
    return kernel
