"""Whether `training.optim` is available here, and takes its arguments.

transformers reports this only shortly before the first step; here it is known before torch is imported.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from data_prep.errors import UserError
from data_prep.recipe import Layer, did_you_mean
from training.config.sections import Config
from training.optim.choose import find_optimizer
from training.optim.facts import Optimizer


def check_optimizer(config: Config, layer: Layer, deepspeed: Mapping[str, Any] | None) -> None:
    """Raises UserError, with the origin of the key, when `training.optim` is not available, or when `optim_args` or
    `optim_target_modules` would be ignored."""
    named = None if "optimizer" in (deepspeed or {}) else config.argument("optim")
    for key, problem in _problems(config, named):
        raise UserError(
            f"{layer.nearest_origin(('training', key))}: training.{key} = {config.argument(key)}: {problem}"
        )


def _problems(config: Config, optim: str | None) -> Iterator[tuple[str, str]]:
    argument = config.argument
    named = None if optim is None else find_optimizer(optim)
    if named is not None:
        if named.refusal:
            yield "optim", f"is not available: {named.refusal}"
        if package := named.find_missing():
            fix = f"pip install '{package.requirement}', or use adamw_torch_fused"
            yield "optim", f"needs a package that is not installed: {fix}"
        if named.projects and not argument("optim_target_modules"):
            yield (
                "optim",
                "projects gradients of some layers: set training.optim_target_modules to them, or to all-linear",
            )
    if argument("optim_target_modules") and not (named and named.projects):
        yield (
            "optim_target_modules",
            f"applies only to GaLore and APOLLO, not to {optim or 'the optimizer of the DeepSpeed JSON'}: leave it out",
        )
    if argument("optim_args"):
        if named is None:
            yield (
                "optim_args",
                "has no effect, because the DeepSpeed JSON names the optimizer: write optimizer.params there",
            )
        else:
            yield from (("optim_args", problem) for problem in _wrong_args(named, argument("optim_args")))


def _wrong_args(optimizer: Optimizer, text: Any) -> Iterator[str]:
    taken = optimizer.arguments
    for pair in str(text).replace(" ", "").split(","):
        key, sign, value = pair.partition("=")
        if not sign or not value:
            yield f"{pair!r} is not KEY=VALUE: write pairs separated by commas"
        elif key == "weight_decay":
            yield "weight_decay has no effect here: set training.weight_decay"
        elif key not in taken:
            known = f": it takes {', '.join(taken)}" if taken else ""
            yield f"{optimizer.name} has no parameter {key!r}{did_you_mean(key, taken)}{known}"
