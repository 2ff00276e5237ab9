"""Numbers and names of `training` that are out of range, reported by key and line before torch is imported.

`TrainingArguments` accepts any number. One that is out of range ends in a traceback after the data was prepared, or
changes the run without a message (`max_steps: 0` trains three epochs).
"""

import math
from collections.abc import Iterator

from training.config.sections import Config

Broken = Iterator[tuple[tuple[str, ...], str]]  # the keys at fault, and what to do

MOST_ROWS = 1_000_000  # of a micro-batch, and of accumulated micro-batches
LARGEST_SEED = 2**32 - 1  # numpy's
# Field of `training` -> least and most, both allowed.
LIMITS: dict[str, tuple[float, float]] = {
    "per_device_train_batch_size": (1, MOST_ROWS),
    "per_device_eval_batch_size": (1, MOST_ROWS),
    "gradient_accumulation_steps": (1, MOST_ROWS),
    "max_steps": (-1, 2**40),
    "seed": (0, LARGEST_SEED),
    "learning_rate": (0, math.inf),
    "weight_decay": (0, math.inf),
    "max_grad_norm": (0, math.inf),
    "warmup_steps": (0, math.inf),
    "adam_epsilon": (0, 1),
    "ddp_timeout": (1, 2**31),
    "save_total_limit": (0, 2**31),
    "dataloader_prefetch_factor": (1, 10_000),
    "dataloader_num_workers": (0, 10_000),
}
BELOW_1 = ("adam_beta1", "adam_beta2", "label_smoothing_factor")
ABOVE_0 = ("eval_steps", "save_steps", "num_train_epochs")
INFINITE = ("max_grad_norm",)  # infinity: the norm is logged and nothing is clipped
NAMES = {
    "log_level": ("detail", "debug", "info", "warning", "error", "critical", "passive"),
    "log_level_replica": ("detail", "debug", "info", "warning", "error", "critical", "passive"),
    "dataloader_multiprocessing_context": ("fork", "spawn", "forkserver"),
}
CHECKPOINTING = ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop")


def check_ranges(config: Config) -> Broken:
    """A rule of `contradictions`."""
    for name, value in config.training.items():
        yield from _check_number(name, value)
        if name in NAMES and value not in (None, *NAMES[name]):
            yield (f"training.{name}",), f"is {value!r}: must be one of {', '.join(NAMES[name])}"
        unknown = sorted(set(value or ()) - set(CHECKPOINTING)) if name.endswith("checkpointing_kwargs") else []
        if unknown:
            yield (f"training.{name}",), f"has the unknown key {unknown[0]!r}: it takes {', '.join(CHECKPOINTING)}"
    if config.training.get("max_steps") == 0:
        yield ("training.max_steps",), "is 0: must be above 0, or -1 to train for training.num_train_epochs"
    if not 0 <= config.data.seed <= LARGEST_SEED:
        yield ("data.seed",), f"is {config.data.seed}: must be from 0 to {LARGEST_SEED}"


def _check_number(name: str, value: object) -> Broken:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    key = (f"training.{name}",)
    if math.isnan(value) or (math.isinf(value) and name not in INFINITE):
        yield key, f"is {value}: must be a finite number"
    least, most = LIMITS.get(name, (-math.inf, math.inf))
    if value < least:
        must = {1: "be above 0", 0: "not be below 0"}.get(int(least), f"be {least} or above")
        yield key, f"is {value}: must {must}"
    if value > most:
        yield key, f"is {value}: must be at most {most:,.0f}"
    if name in ABOVE_0 and value <= 0:
        yield key, f"is {value}: must be above 0"
    if name in BELOW_1 and not 0 <= value < 1:
        yield key, f"is {value}: must be 0 or above and below 1"
