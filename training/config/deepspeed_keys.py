"""Table of the keys that the installed DeepSpeed reads, checked in as deepspeed_keys.json.

    python -m training.config.deepspeed_keys        writes the table again, after an upgrade of DeepSpeed

DeepSpeed has no list of its keys. Blocks that it parses with pydantic are read off the models. For all others the
parser itself is asked: it gets a dict that writes down every key looked up in it, level by level, with the default for
it. A value's kind in the table is "boolean", "number", "string", the list of its choices, or null where neither
annotation nor default tells. Needs torch, so it runs here and in its test, not in `load_config`.
"""

import inspect
import json
from collections.abc import Iterator
from enum import Enum
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from training.config.deepspeed_json import ANYTHING, KEYS_FILE

# Blocks whose keys the parser passes on unread, and those that only an engine reads later.
FREE = (
    "autotuning.arg_mappings",
    "data_efficiency.data_routing.random_ltd",
    "data_efficiency.data_sampling.curriculum_learning",
    "data_efficiency.data_sampling.dynamic_batching",
    "datastates_ckpt",
)
WRITTEN_BY_HAND: dict[str, Any] = {
    "optimizer": {"type": "string", "params": ANYTHING, "legacy_fusion": "boolean"},  # looked up only with a type
    "scheduler": {"type": "string", "params": ANYTHING},
    # HF knows "auto" here and DeepSpeed's default is None
    "train_batch_size": "number",
    "train_micro_batch_size_per_gpu": "number",
    "gradient_accumulation_steps": "number",
    "pipeline": dict.fromkeys(
        ("stages", "partition", "seed_layers", "activation_checkpoint_interval", "pipe_partitioned", "grad_partitioned")
    ),
    "sequence_parallel_size": "number",  # read from the raw dict, before parsing
    "vocabulary_size": "number",
}
# Taken by DeepSpeed before it constructs an Adam.
ADAM_EXTRAS = ("adam_w_mode", "torch_adam", "fp32_optimizer_states")
KINDS: dict[type, str] = {bool: "boolean", int: "number", float: "number", str: "string"}
MAX_DEPTH = 4


class LookupRecorder(dict[str, Any]):
    """An empty dict that remembers which keys were looked up, and with which default."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.asked: dict[str, Any] = {}

    def get(self, key: Any, default: Any = None) -> Any:
        """A value that a parser asks for; the key is recorded."""
        self.asked[key] = default
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.setdefault(key, None)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.setdefault(str(key), None)
        return super().__contains__(key)

    def keys(self) -> Any:  # parsers ask `KEY in param_dict.keys()`
        """All keys: parsers ask `KEY in param_dict.keys()`."""
        return _Keys(self)

    def __bool__(self) -> bool:
        return True

    def __copy__(self) -> "LookupRecorder":
        return self


class _Keys:
    def __init__(self, owner: LookupRecorder):
        self.owner = owner

    def __contains__(self, key: object) -> bool:
        return key in self.owner

    def __iter__(self) -> Any:
        return iter(self.owner)


def build_table() -> dict[str, Any]:
    """{"deepspeed": version, "keys": nested table, "removed": {dotted key: reason}}. Imports deepspeed."""
    import deepspeed
    from deepspeed.runtime import config as ds_config

    keys: dict[str, Any] = {}
    _probe((), keys)
    for name, model in _models().items():
        *blocks, last = name.split(".")
        level = keys
        for block in blocks:
            level[block] = level.get(block) or {}
            level = level[block]
        level[last] = _model_keys(model)
    keys |= WRITTEN_BY_HAND
    removed = dict(ds_config._REMOVED_TOP_LEVEL_CONFIG_KEYS)
    removed |= {f"zero_optimization.{key}": text for key, text in ds_config._REMOVED_ZERO_CONFIG_KEYS.items()}
    for key in removed:
        keys.pop(key, None)
    return {
        "deepspeed": deepspeed.__version__,
        "keys": _sorted(keys),
        "removed": dict(sorted(removed.items())),
        "params": {"optimizer": _sorted(_optimizers()), "scheduler": _sorted(_schedulers())},
    }


def _optimizers() -> dict[str, Any]:
    """Name -> its `params`. DeepSpeed's own names in lower case; None for those of `mup`, which may not be here."""
    import torch
    from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
    from deepspeed.ops.lamb import FusedLamb
    from deepspeed.ops.lion import DeepSpeedCPULion, FusedLion
    from deepspeed.runtime import config as ds_config
    from deepspeed.runtime.engine import DeepSpeedEngine

    adam = {*ADAM_EXTRAS, *_params(DeepSpeedCPUAdam, FusedAdam, torch.optim.AdamW)}
    muon = {*DeepSpeedEngine._MUON_HALF_KEYS, *DeepSpeedEngine._ADAM_HALF_KEYS, "muon_lr", "adam_lr", *ADAM_EXTRAS}
    found: dict[str, Any] = dict.fromkeys(ds_config.DEEPSPEED_OPTIMIZERS)
    found |= {
        "adam": sorted(adam),
        "adamw": sorted(adam),
        "adagrad": _params(DeepSpeedCPUAdagrad, torch.optim.Adagrad),
        "lamb": _params(FusedLamb),
        "lion": _params(DeepSpeedCPULion, FusedLion),
        "muon": sorted(muon),
    }
    for name, kind in vars(torch.optim).items():
        is_one = (
            isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
        )
        if is_one and name.lower() not in found:
            found[name] = _params(kind)
    return found


def _schedulers() -> dict[str, Any]:
    """Name -> its `params`."""
    from deepspeed.runtime import lr_schedules
    from torch.optim import lr_scheduler

    found = {name: _params(getattr(lr_schedules, name)) for name in lr_schedules.VALID_LR_SCHEDULES}
    for name, kind in vars(lr_scheduler).items():
        is_one = isinstance(kind, type) and issubclass(kind, lr_scheduler.LRScheduler)
        if is_one and name[0] != "_" and kind is not lr_scheduler.LRScheduler:
            found.setdefault(name, _params(kind))
    return found


def _params(*kinds: type) -> list[str]:
    """Names of what any of them is constructed with, after itself and what it works on."""
    signatures = [list(inspect.signature(kind.__init__).parameters.values()) for kind in kinds]
    return sorted(
        {item.name for signature in signatures for item in signature[2:] if item.kind is not item.VAR_KEYWORD}
    )


def _models() -> dict[str, type]:
    """Dotted block -> pydantic model that parses it."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.compile.config import CompileConfig
    from deepspeed.inference.config import WeightQuantConfig
    from deepspeed.monitor.config import DeepSpeedMonitorConfig
    from deepspeed.runtime import config as ds_config
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.tensor_parallel.config import TPTrainingConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    fields = DeepSpeedMonitorConfig.model_fields.items()
    return {name: model for name, field in fields for model in _models_of(field.annotation)} | {
        "bf16": DeepSpeedBF16Config,
        "bfloat16": DeepSpeedBF16Config,
        "comms_logger": CommsLoggerConfig,
        "compile": CompileConfig,
        "fp16": DeepSpeedFP16Config,
        "hybrid_engine": ds_config.HybridEngineConfig,
        "tensor_parallel": TPTrainingConfig,
        "timers.throughput": DeepSpeedThroughputTimerConfig,
        "weight_quantization": WeightQuantConfig,
        "zero_optimization": DeepSpeedZeroConfig,
    }


def _model_keys(model: Any) -> dict[str, Any]:
    """Fields and aliases; a field that is a model itself becomes a block, a plain dict is free-form."""
    keys: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        nested = next(_models_of(field.annotation), None)
        free = "dict" in str(field.annotation).lower()
        below = _model_keys(nested) if nested else ANYTHING if free else _kind(field.annotation)
        keys |= {key: below for key in (name, field.alias) if key}
    return keys


def _kind(annotation: Any) -> Any:
    """What JSON holds for a field of this type: a name of KINDS, the list of choices, or None."""
    several = [_kind(argument) for argument in get_args(annotation) if argument is not NoneType]
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if several:
        return several[0] if len(several) == 1 and get_origin(annotation) not in (list, tuple) else None
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [choice.value for choice in annotation]
    return KINDS.get(annotation)


def _models_of(annotation: Any) -> Iterator[Any]:
    if hasattr(annotation, "model_fields"):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_of(argument)


def _probe(path: tuple[str, ...], keys: dict[str, Any]) -> None:
    """Fill `keys` with what the parser looks up in the block at `path`, and below."""
    known_models = {name.split(".")[0] for name in _models()}
    asked = _asked(path)
    for key in sorted(asked):
        here = (*path, key)
        below: dict[str, Any] = {}
        if ".".join(here) in FREE:
            keys[key] = ANYTHING
            continue
        if len(here) < MAX_DEPTH and here[0] not in known_models and here[0] not in WRITTEN_BY_HAND:
            _probe(here, below)
        keys[key] = below or (None if asked[key] == "auto" else KINDS.get(type(asked[key])))


def _asked(path: tuple[str, ...]) -> dict[str, Any]:
    """Key -> default, of the block at `path`."""
    from deepspeed.runtime.config import DeepSpeedConfig

    probe = LookupRecorder()
    root = LookupRecorder({"train_micro_batch_size_per_gpu": 1})
    level = root
    for key in path[:-1]:
        inner = LookupRecorder()
        level[key] = inner
        level = inner
    if path:
        level[path[-1]] = probe
    parsed = object.__new__(DeepSpeedConfig)
    parsed._param_dict = root
    try:
        parsed._initialize_params(root)
    except Exception as error:  # a scalar key that got a block: it asked nothing of it
        if not path:
            raise RuntimeError("DeepSpeedConfig cannot parse an empty config") from error
    return probe.asked if path else root.asked


def _sorted(keys: Any) -> Any:
    return {key: _sorted(keys[key]) for key in sorted(keys)} if isinstance(keys, dict) else keys


def main() -> None:
    """Write the table of keys that the installed DeepSpeed knows."""
    KEYS_FILE.write_text(json.dumps(build_table(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
