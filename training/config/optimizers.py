"""Whether `training.optim` can be had here, with its arguments.

transformers says so only when the first step is near; the answer is here before torch is imported.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from data_prep.errors import UserError
from data_prep.recipe import Layer, did_you_mean
from training.config.sections import Config
from training.optim.choose import find_optimizer
from training.optim.facts import Optimizer


def check_optimizer(config: Config, layer: Layer, deepspeed: Mapping[str, Any] | None) -> None:
    """Raises UserError, with the origin of the key, when `training.optim` cannot be had, or when `optim_args` or
    `optim_target_modules` would be passed over."""
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
            yield "optim", f"is not offered: {named.refusal}"
        if package := named.find_missing():
            fix = f"pip install '{package.requirement}', or use adamw_torch_fused"
            yield "optim", f"needs a package that is not installed: {fix}"
        if named.projects and not argument("optim_target_modules"):
            yield "optim", "needs training.optim_target_modules, the layers to project, e.g. all-linear"
    if argument("optim_target_modules") and not (named and named.projects):
        yield "optim_target_modules", f"is of GaLore and APOLLO only, not of {optim or 'a DeepSpeed optimizer block'}"
    if argument("optim_args"):
        if named is None:
            yield "optim_args", "the DeepSpeed JSON names the optimizer: write optimizer.params there"
        else:
            yield from (("optim_args", problem) for problem in _wrong_args(named, argument("optim_args")))


def _wrong_args(optimizer: Optimizer, text: Any) -> Iterator[str]:
    taken = optimizer.arguments
    for pair in str(text).replace(" ", "").split(","):
        key, sign, value = pair.partition("=")
        if not sign or not value:
            yield f"{pair!r} is no KEY=VALUE; pairs are separated by commas"
        elif key == "weight_decay":
            yield "weight_decay: every parameter group has training.weight_decay: set that"
        elif key not in taken:
            known = f" (it takes {', '.join(taken)})" if taken else ""
            yield f"{optimizer.name} takes no {key!r}{did_you_mean(key, taken)}{known}"
