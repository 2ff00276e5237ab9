"""Which attention kernel a run uses, and why.

`auto` takes the first of `KERNELS` that runs on this machine and in this model: FlashAttention 3, then 2, then that of
PyTorch (`torch_varlen`), on a CPU our own kernel, else PyTorch's SDPA, else `eager` for the models that have nothing
else there (Gemma 2 caps attention scores, gpt-oss has sinks). Where rows are one document each and PyTorch takes cuDNN
for them, `torch_varlen` comes before FlashAttention 2. A kernel asked for by name is used or refused, never replaced.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from peft import PeftModel
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig

from data_prep.errors import UserError
from data_prep.recipe.spelling import find_near
from training.attention import kernels
from training.attention.kernels import AttentionKernel, Compute, find_kernel, list_names

logger = logging.getLogger("redline.models")

ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}  # of a config's `layer_types`


def choose_attention(
    requested: str, compute: Compute, model_class: Any = None, *, is_planned: bool = False
) -> tuple[str, str]:
    """Name for HF's `attn_implementation`, and the reason in words; logs both.

    model_class: as of `find_model_class`. is_planned: nothing will run, so no kernel is built. Raises UserError when
    `requested` is unknown, cannot run here or in this model, naming the obstacle and what to install.
    """
    if requested == "auto":
        implementation, reason = _choose_best(compute, model_class, is_planned=is_planned)
    else:
        check_attention(requested, compute, model_class)
        if not is_planned and (obstacle := find_kernel(requested).prepare()):
            raise _refuse(requested, obstacle)
        implementation, reason = requested, "asked for"
    logger.info("attention: %s (%s)", implementation, reason)
    return implementation, reason


def check_attention(requested: str, compute: Compute, model_class: Any = None) -> None:
    """Raises UserError when `requested` is unknown, cannot run here or in this model, naming the obstacle."""
    if requested == "auto":
        return
    if obstacle := find_named(requested, model_class).obstacle_here(compute):
        raise _refuse(requested, obstacle)


def find_named(requested: str, model_class: Any = None) -> AttentionKernel:
    """The kernel that a recipe names, whether or not it runs on this machine.

    Raises UserError for a name that is not in `KERNELS`, and for a kernel that does not run in this model.
    """
    known = list_names()
    if requested not in known:
        nearest = find_near(requested, known)
        hint = f"did you mean {nearest!r}?" if nearest else f"one of auto, {', '.join(known)}"
        raise _refuse(requested, f"unknown, {hint}")
    kernel = find_kernel(requested)
    if obstacle := kernel.obstacle_in(model_class):
        raise _refuse(requested, obstacle)
    return kernel


def _refuse(requested: str, obstacle: str) -> UserError:
    return UserError(f"model.attn_implementation: {requested!r} cannot be used: {obstacle}; or use 'auto'")


def find_usable(compute: Compute, model_class: Any = None) -> list[AttentionKernel]:
    """What `auto` may take here in this model, best first."""
    usable = [
        kernel for kernel in kernels.KERNELS if kernel.automatic and kernel.obstacle(compute, model_class) is None
    ]
    return sorted(usable, key=lambda kernel: not kernel.is_preferred(compute))  # else in the order of the tuple


def find_model_class(config: PreTrainedConfig) -> Any:
    """Class of the causal model of this config; None where the model brings its own code."""
    return MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)


def needs_cu_seqlens(model: torch.nn.Module) -> bool:
    """Whether a packed batch for this model holds the boundaries of its documents (`cu_seq_lens_q` and its kin).

    They go to models that hand unknown arguments on to their layers, for kernels that ask for them and for layers that
    are no attention at all (state-space and linear ones), whatever the kernel of the others is.
    """
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    parameters = inspect.signature(inner.forward).parameters.values()
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return False
    config = inner.config.get_text_config()
    others = set(getattr(config, "layer_types", None) or ()) - ATTENTION_LAYERS
    return bool(others) or find_kernel(config._attn_implementation or "eager").needs_cu_seqlens


def _choose_best(compute: Compute, model_class: Any, *, is_planned: bool) -> tuple[str, str]:
    unready: list[str] = []
    for best in find_usable(compute, model_class):
        obstacle = None if is_planned else best.prepare()
        if obstacle is None:
            break
        unready.append(f"no {best.name}: {obstacle}")
    else:
        raise UserError(f"model.attn_implementation: {'; '.join(unready)}")
    reasons = [*_describe_obstacles(compute, model_class, best), *unready]
    if compute.packed and best.stand_in(masked=True).has_mask:
        reasons.append("packed rows get a block mask of seq_len x seq_len")
    return best.name, "; ".join(reasons) or "best that is installed and fits this device"


def _describe_obstacles(compute: Compute, model_class: Any, best: AttentionKernel) -> list[str]:
    """What keeps the kernels before `best` from being taken, each obstacle once."""
    found: dict[str, list[AttentionKernel]] = {}
    for kernel in kernels.KERNELS[: kernels.KERNELS.index(best)]:
        obstacle = kernel.obstacle(compute, model_class) or "rows of one document each are faster by cuDNN"
        if kernel.automatic:
            found.setdefault(obstacle, []).append(kernel)
    return [f"no {_name_together(group)}: {obstacle}" for obstacle, group in found.items()]


def _name_together(group: list[AttentionKernel]) -> str:
    family = group[0].family
    of_one_family = len(group) > 1 and family and all(kernel.family == family for kernel in group)
    return family if of_one_family else " and ".join(kernel.name for kernel in group)
