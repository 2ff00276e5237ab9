"""Whether `training.optim` can be had here, with its arguments.

transformers says so only when the first step is near; the answer is here before torch is imported.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from data_prep.errors import UserError
from data_prep.recipe import Layer, did_you_mean
from training.config.optimizer_table import NOT_OFFERED, OPTIM_ARGS, PACKAGES, PROJECTED, takes_bitsandbytes
from training.config.sections import Config


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
    if optim is not None:
        if optim in NOT_OFFERED:
            yield "optim", f"is not offered: {NOT_OFFERED[optim]}"
        if problem := _find_missing(optim):
            yield "optim", problem
        if optim.startswith(PROJECTED) and not argument("optim_target_modules"):
            yield "optim", "needs training.optim_target_modules, the layers to project, e.g. all-linear"
    if argument("optim_target_modules") and not (optim or "").startswith(PROJECTED):
        yield "optim_target_modules", f"is of GaLore and APOLLO only, not of {optim or 'a DeepSpeed optimizer block'}"
    if argument("optim_args"):
        if optim is None:
            yield "optim_args", "the DeepSpeed JSON names the optimizer: write optimizer.params there"
        else:
            yield from (("optim_args", problem) for problem in _wrong_args(optim, argument("optim_args")))


def _find_missing(optim: str) -> str | None:
    module, package = PACKAGES.get(optim) or (
        ("bitsandbytes", "bitsandbytes") if takes_bitsandbytes(optim) else ("", "")
    )
    if not module or importlib.util.find_spec(module) is not None:
        return None
    return f"needs a package that is not installed: pip install '{package}', or use adamw_torch_fused"


def _wrong_args(optim: str, text: Any) -> Iterator[str]:
    best = max((start for start in OPTIM_ARGS if optim.startswith(start)), key=len, default=None)
    taken = OPTIM_ARGS[best] if best else ()
    for pair in str(text).replace(" ", "").split(","):
        key, sign, value = pair.partition("=")
        if not sign or not value:
            yield f"{pair!r} is no KEY=VALUE; pairs are separated by commas"
        elif key == "weight_decay":
            yield "weight_decay: every parameter group has training.weight_decay: set that"
        elif key not in taken:
            yield f"{optim} takes no {key!r}{did_you_mean(key, taken)}" + f" (it takes {', '.join(taken)})" * bool(
                taken
            )
