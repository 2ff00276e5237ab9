"""Which settings may change when a run is resumed: the table `RULES`, and the comparison with the checkpoint.

The manifest of a checkpoint has the settings that it was trained with. A setting that differs now is one of three:

- a change takes effect from the first resumed step, is logged and becomes an event in `events.jsonl` (`TAKES_EFFECT`);
- a change is refused, with both values, because the state in the checkpoint depends on the setting (a reason as text);
- a change has no effect on what is trained, so it is not compared (`FREE`).

The order of the data has a check of its own (`training/data/resume_check.py`).
"""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from data_prep.errors import UserError
from data_prep.recipe.yaml_file import parse_yaml
from training.config.deepspeed_blocks import TAKE_AUTO

if TYPE_CHECKING:
    from training.config.loading import LoadedConfig

logger = logging.getLogger("redline.train")

TAKES_EFFECT = "takes effect"
FREE = "free"
_OPTIMIZER = "the optimizer state in the checkpoint depends on it"
_PRECISION = "the states in the checkpoint have the old precision"
_MODEL = "the weights in the checkpoint belong to the old model"
_BASE = "the adapter in the checkpoint was trained on the old weights"
_RANDOM = "the checkpoint has the state of the random number generators"
_ZERO = "the states in the checkpoint are sharded for the old setup"
_SCHEDULE = "the schedule state in the checkpoint belongs to the old schedule"
ENDS_BYTES = 2**20  # of each weight file, hashed at its beginning and its end
STATEFUL_SCHEDULES = ("reduce_lr_on_plateau", "greedy")  # no function of the step alone

_EFFECTIVE = (
    "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm",
    "label_smoothing_factor", "neftune_noise_alpha", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps",
    "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps",
    "average_tokens_across_devices", "tf32", "use_liger_kernel", "liger_kernel_config", "full_determinism",
)  # fmt: skip
_FREE = (
    "output_dir", "activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing",
    "gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend", "torch_compile_mode", "use_cache",
    "log_on_each_node", "log_level", "log_level_replica", "report_to", "run_name", "project", "eval_strategy",
    "eval_steps", "eval_delay", "per_device_eval_batch_size", "eval_on_start", "save_only_model", "save_strategy",
    "save_steps", "save_on_each_node", "save_total_limit", "load_best_model_at_end", "metric_for_best_model",
    "greater_is_better", "use_cpu", "dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory",
    "dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context",
    "remove_unused_columns", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
    "ddp_static_graph", "ddp_timeout", "debug",
)  # fmt: skip
# Dotted key, or the beginning of one (the longest that fits counts) -> TAKES_EFFECT, FREE or why it is refused.
RULES: dict[str, str] = {
    **{f"training.{name}": TAKES_EFFECT for name in _EFFECTIVE},
    **{f"training.{name}": FREE for name in _FREE},
    "training.optim": _OPTIMIZER,
    "training.optim_args": _OPTIMIZER,
    "training.optim_target_modules": _OPTIMIZER,
    "training.bf16": _PRECISION,
    "training.fp16": _PRECISION,
    "training.seed": _RANDOM,
    "training.fsdp": _ZERO,
    "training.fsdp_config": _ZERO,
    "model": _MODEL,
    "model.path": TAKES_EFFECT,  # a folder may have moved: what was trained comes from the checkpoint
    "model.base": _BASE,
    "model.attn_implementation": FREE,
    "model.z_loss": TAKES_EFFECT,
    "model.trust_remote_code": FREE,
    "adapter": _MODEL,
    "adapter.dropout": TAKES_EFFECT,
    "deepspeed": TAKES_EFFECT,
    "deepspeed.used": _ZERO,
    "deepspeed.optimizer": _OPTIMIZER,
    "deepspeed.scheduler.type": _SCHEDULE,
    "deepspeed.zero_optimization.stage": _ZERO,
}
_OPEN = ("deepspeed", "model.config")  # blocks of which a missing key is a value


@dataclass(frozen=True)
class Change:
    """A setting that takes effect from the step after `step`."""

    key: str
    old: Any
    new: Any
    step: int

    @property
    def message(self) -> str:
        """One line for the log and the events."""
        return f"{self.key}: {json.dumps(self.old)} -> {json.dumps(self.new)} from step {self.step + 1}"


def describe_settings(loaded: "LoadedConfig") -> dict[str, Any]:
    """What a run is trained with, dotted key -> value (JSON), of all keys that are compared on a resume."""
    config = loaded.config.model_dump(mode="json")
    config["training"] = json.loads(json.dumps(loaded.config.arguments(), default=str))
    blocks: dict[str, Any] = {name: config[name] for name in ("model", "adapter", "training")}
    stated = {key: value for key, value in _flatten(loaded.deepspeed or {}, ()) if key not in TAKE_AUTO}
    settings = _keep_compared(blocks)
    if loaded.config.adapter.method != "none" and loaded.config.model.path:
        settings["model.base"] = identify_weights(loaded.config.model.path)
    return (
        settings | {"deepspeed.used": loaded.deepspeed is not None} | {f"deepspeed.{k}": v for k, v in stated.items()}
    )


def identify_weights(path: str) -> str:
    """What tells the weights of a directory from others, wherever it lies: a hash of the beginning and end of each
    file, and their sizes. Of a name on the hub, the name."""
    files = sorted(file for pattern in ("*.safetensors", "*.bin") for file in Path(path).glob(pattern))
    if not files:
        return path
    digest = xxhash.xxh3_128()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(ENDS_BYTES))
            opened.seek(max(0, size - ENDS_BYTES))
            digest.update(opened.read(ENDS_BYTES))
    return digest.hexdigest()


def find_rule(key: str) -> str:
    """Of a dotted key; what no rule knows is refused, with that reason."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        if (rule := RULES.get(".".join(parts[:length]))) is not None:
            return rule
    return "its effect on the states in the checkpoint is unknown"


def find_changes(checkpoint: Path, step: int, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[Change]:
    """What takes effect from the step after `step`. before: the manifest's settings, None: those of `config.yaml`.

    Raises UserError naming each key that cannot change, with both values.
    """
    if before is None:
        known = _read_config(checkpoint.parent / "config.yaml")
        logger.warning(
            "%s: the checkpoint has no settings, because an older Redline saved it: %s", checkpoint,
            "compared with config.yaml in the run directory" if known else "changes are not detected",
        )  # fmt: skip
        before = {key: value for key, value in known.items() if key in now}
        now = {key: now[key] for key in before}
    changes, refused = [], []
    for key in sorted({*before, *now}):
        known = key in before and key in now
        if before.get(key) == now.get(key) or not (known or key.startswith(_OPEN)):
            continue
        change = Change(key, before.get(key), now.get(key), step)
        rule = _SCHEDULE if _has_state(change) else find_rule(key)
        if rule == TAKES_EFFECT:
            changes.append(change)
        elif rule != FREE:
            refused.append(f"{key} was {json.dumps(change.old)} and is now {json.dumps(change.new)} ({rule})")
    if refused:
        raise UserError(
            f"{checkpoint}: the run cannot resume with changed settings: {'; '.join(refused)}: restore the old values, "
            "or start from scratch with --resume never"
        )
    return changes


def _has_state(change: Change) -> bool:
    return change.key == "training.lr_scheduler_type" and bool({change.old, change.new} & {*STATEFUL_SCHEDULES})


def _keep_compared(blocks: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in _flatten(blocks, ()) if find_rule(key) != FREE}


def _flatten(values: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Down to the fields of sections and blocks; a mapping that is one field's value stays whole."""
    for key, value in values.items():
        here = (*path, str(key))
        if isinstance(value, Mapping) and (not path or here[0] not in ("training", "adapter")):
            yield from _flatten(value, here)
        else:
            yield ".".join(here), value


def _read_config(file: Path) -> dict[str, Any]:
    """Of a run whose checkpoints keep no settings: what its `config.yaml` states, nothing without one."""
    try:
        values = parse_yaml(file.read_text(encoding="utf-8"), str(file)).values
    except (OSError, UserError):
        return {}
    return _keep_compared({name: values.get(name) or {} for name in ("model", "adapter", "training")})
