"""The optimizer that a recipe or a DeepSpeed JSON names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.optim import optimizers
from training.optim.facts import ChosenOptimizer, Optimizer

SLOW_IMPORTS = (optimizers.BITSANDBYTES.module,)
"""Modules of optimizers that peft and transformers import wherever they find them, at seconds of a start."""


def find_optimizer(name: str) -> Optimizer:
    """The optimizer of this name, in any case. One that is not in `OPTIMIZERS` is one of torch, of which nothing is
    known."""
    known = (one for one in optimizers.OPTIMIZERS if one.name == name.lower())
    return next(known, None) or Optimizer(name, in_recipe=False, in_json="torch")


def choose_optimizer(arguments: Mapping[str, Any], deepspeed: Mapping[str, Any] | None) -> ChosenOptimizer:
    """`optim` and `optim_args` of `config.arguments()`, or what the DeepSpeed JSON has in their place."""
    block: Mapping[str, Any] = (deepspeed or {}).get("optimizer") or {}
    if block:
        name, given = str(block["type"]), dict(block.get("params") or {})
    else:
        name = str(arguments["optim"])
        pairs = str(arguments.get("optim_args") or "").replace(" ", "").split(",")
        given = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    optimizer = find_optimizer(name)
    on = (key for key in optimizer.adds_state if str(given.get(key, 0)).lower() not in ("0", "0.0", "false"))
    return ChosenOptimizer(optimizer, tuple(on))


def is_of_deepspeed(type_name: str) -> bool:
    """Whether DeepSpeed has this type of its JSON itself; the others are torch's."""
    return find_optimizer(type_name).in_json == "deepspeed"


def list_unneeded_imports(optim: str | None) -> list[str]:
    """Those of `SLOW_IMPORTS` that this optimizer does not need; None: a DeepSpeed JSON names one in its place."""
    needed = {package.module for package in find_optimizer(optim).packages} if optim else set()
    return [module for module in SLOW_IMPORTS if module not in needed]


def describe_offer() -> str:
    """Which values of `training.optim` need a package of their own and which are refused, in sentences."""
    values = [one for one in optimizers.OPTIMIZERS if one.in_recipe]
    own = sorted(one.name for one in values if one.packages and not one.refusal and not _comes_along(one))
    refused = sorted(one.name for one in values if one.refusal)
    return (
        f"These need another package, which the error message names: {', '.join(own)}. These are not available: "
        f"{', '.join(refused)}."
    )


def _comes_along(optimizer: Optimizer) -> bool:
    """Whether the project's own requirements have its packages."""
    return all(package is optimizers.BITSANDBYTES for package in optimizer.packages)
