"""Which mode of `perf.compile` a run uses, and its installation in a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from data_prep.errors import UserError
from training.attention import cpu
from training.compiling.compiled import BatchShapes, CompiledCall
from training.compiling.modes import OFF, CompileMode, find_mode
from training.metrics.decoder_modules import find_text_config

logger = logging.getLogger("redline.models")

SHARDED_WEIGHTS = 3  # the stage of ZeRO in which a rank holds a part of each weight


def find_obstacle(mode: CompileMode, device_type: str, deepspeed: Mapping[str, Any] | None = None) -> str | None:
    """What keeps `mode` from running on this machine or under this DeepSpeed JSON; None: nothing."""
    stage = ((deepspeed or {}).get("zero_optimization") or {}).get("stage", 0)
    if mode is not OFF and stage == SHARDED_WEIGHTS:
        return (
            f"zero_optimization.stage is {stage}, whose hooks on each submodule cut the graphs until torch gives up "
            "compiling: set stage 1 or 2"
        )
    return mode.obstacle_here(device_type)


def check_compile(requested: str, device_type: str, deepspeed: Mapping[str, Any] | None = None) -> CompileMode:
    """The mode that `requested` stands for. deepspeed: the JSON. Raises UserError for one that cannot run."""
    mode = find_mode(requested)
    if obstacle := find_obstacle(mode, device_type, deepspeed):
        raise UserError(f"perf.compile: {requested!r} cannot be used: {obstacle}; or use 'off'")
    return mode


def install_compile(model: nn.Module, requested: str, shapes: BatchShapes, *, device_type: str) -> CompileMode:
    """Have the modules of `requested` compiled, each at its first call with gradients.

    model: a causal model of transformers or peft's wrapper of one, not yet wrapped by an engine. Raises UserError when
    the mode cannot run on this machine or has nothing to compile in this model.
    """
    mode = check_compile(requested, device_type)
    if mode is OFF:
        return mode
    modules = mode.find_modules(model)
    if not modules:
        raise UserError(
            f"perf.compile: {requested!r} cannot be used: {type(model).__name__} has no module that it compiles "
            f"({mode.compiles}): use 'off'"
        )
    # It finds the documents of a batch in Python, again for each batch: graphs end before it.
    ALL_ATTENTION_FUNCTIONS.register(cpu.NAME, torch.compiler.disable(cpu.attend_documents))
    # DDP would cut each graph where a bucket of gradients ends, and a layer is smaller than a bucket.
    torch._dynamo.config.optimize_ddp = False
    config: Any = find_text_config(model)
    attention = str(getattr(config, "_attn_implementation", None) or "eager")
    for module in modules:
        CompiledCall(module, shapes, attention).install()
    logger.info("compile: %s (%s; passes without gradients run uncompiled)", mode.name, mode.compiles)
    return mode
