"""Options that take effect on a resume although the checkpoint's optimizer and schedule hold the old ones.

Loading a checkpoint overwrites what the optimizer and the schedule were built with: rate, decay, betas, under ZeRO the
clipping as well. So what they were built with is written down before (`AsBuilt`), and of the options that changed it
is put back after. Where none changed nothing is touched: an unchanged resume stays bit for bit the straight run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

# Option -> the entry of a parameter group that it stands in.
IN_GROUPS = {
    "training.weight_decay": "weight_decay",
    "training.adam_beta1": "betas",
    "training.adam_beta2": "betas",
    "training.adam_epsilon": "eps",
}
RATE = "training.learning_rate"
# Options that the rate of a step is a function of.
OF_RATE = {
    RATE,
    "training.lr_scheduler_type",
    "training.lr_scheduler_kwargs",
    "training.warmup_steps",
    "training.max_steps",
    "training.num_train_epochs",
    "training.per_device_train_batch_size",
    "training.gradient_accumulation_steps",
}
_DEEPSPEED_SCHEDULE = "deepspeed.scheduler."


@dataclass(frozen=True)
class AsBuilt:
    """Of each parameter group all but its parameters, and the schedule's base rates, before a checkpoint is loaded."""

    groups: list[dict[str, Any]]
    base_rates: list[float]

    @classmethod
    def of(cls, optimizer: Any, scheduler: Any) -> AsBuilt:
        """From an optimizer and a schedule that no checkpoint was loaded into."""
        groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        return cls(groups, list(getattr(_unwrap(scheduler), "base_lrs", [])))


def apply_changes(trainer: Any, built: AsBuilt, changes: Mapping[str, tuple[Any, Any]]) -> None:
    """Make `changes` (option -> old, new) count from the next step on, on the loaded optimizer and schedule."""
    groups = trainer.optimizer.param_groups
    for option in changes.keys() & IN_GROUPS.keys():
        entry = IN_GROUPS[option]
        for group, as_built in zip(groups, built.groups, strict=True):
            if entry in as_built:
                group[entry] = as_built[entry]
    if "training.max_grad_norm" in changes and trainer.is_deepspeed_enabled:
        trainer.deepspeed.optimizer.clip_grad = trainer.args.max_grad_norm
    if changes.keys() & OF_RATE or any(option.startswith(_DEEPSPEED_SCHEDULE) for option in changes):
        _set_rates(groups, _unwrap(trainer.lr_scheduler), built, changes.get(RATE))


def _set_rates(groups: Any, scheduler: Any, built: AsBuilt, rate: tuple[float, float] | None) -> None:
    """The rates of the next step as the schedule has them with the new options; a schedule that is no function of the
    step has them in proportion to the new rate."""
    if isinstance(scheduler, LambdaLR):
        scheduler.base_lrs = list(built.base_rates)
        factors = [function(scheduler.last_epoch) for function in scheduler.lr_lambdas]
        rates = [base * factor for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
    elif type(scheduler).__module__.startswith("deepspeed."):
        rates = list(scheduler.get_lr())
    else:
        scale = rate[1] / rate[0] if rate and rate[0] else 1.0
        rates = [group["lr"] * scale for group in groups]
        if built.base_rates:
            scheduler.base_lrs = list(built.base_rates)
    for group, value, as_built in zip(groups, rates, built.groups, strict=True):
        group["lr"] = value
        if "initial_lr" in as_built:
            group["initial_lr"] = as_built["initial_lr"]
    scheduler._last_lr = rates


def _unwrap(scheduler: Any) -> Any:
    """Without accelerate's wrapper."""
    return getattr(scheduler, "scheduler", scheduler)
