"""Missing keys of a DeepSpeed JSON are filled in from the recipe, and blocks that have no effect here are refused.

DeepSpeed has defaults of its own: a learning rate of 1e-3 in most optimizers and schedules, 1000 steps of warmup, a
ZeRO-3 model that is not gathered when it is saved. Hugging Face fills in only keys with the value "auto". Here, a
missing key means "auto", and `describe_filled` lists the keys that were filled in.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from data_prep.errors import UserError
from data_prep.recipe import Layer
from training.optim.choose import find_optimizer, is_of_deepspeed
from training.precision import list_switches

AUTO = "auto"
FROM_RECIPE = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
)
OPTIMIZER_PARAMS = ("lr", "betas", "eps", "weight_decay")
SCHEDULER_PARAMS = ("warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "total_num_steps")
GATHER = "stage3_gather_16bit_weights_on_model_save"
# DeepSpeed's other names for the same key: a value may be set under any of them.
GATHER_NAMES = (GATHER, "gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save")
# Keys whose "auto" is replaced by a value, by Hugging Face or by DeepSpeed.
TAKE_AUTO = {
    *FROM_RECIPE,
    *(f"{name}.enabled" for name in list_switches()),
    *(f"optimizer.params.{name}" for name in OPTIMIZER_PARAMS),
    *(f"scheduler.params.{name}" for name in SCHEDULER_PARAMS),
    "zero_optimization.reduce_bucket_size",
    "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.stage3_param_persistence_threshold",
    f"zero_optimization.{GATHER}",
}
# The rate of these schedules is that of the recipe under another name; Hugging Face does not fill it in.
OWN_RATES = {
    ("scheduler", "LRRangeTest"): ("lr_range_test_min_lr",),
    ("scheduler", "OneCycle"): ("cycle_max_lr",),
}

SCHEDULES_OF_DEEPSPEED = ("LRRangeTest", "OneCycle", "WarmupLR", "WarmupDecayLR", "WarmupCosineLR")

On = Callable[[Any], bool]


def _enabled(block: Any) -> bool:
    return isinstance(block, Mapping) and bool(block.get("enabled"))


def _any_set(block: Any) -> bool:
    """Whether a block enables anything: a block with only false and null does not."""
    return any(_any_set(item) for item in block.values()) if isinstance(block, Mapping) else bool(block)


def _above_one(value: Any) -> bool:
    return isinstance(value, int | float) and value > 1


def _splits_tensors(block: Any) -> bool:
    if not isinstance(block, Mapping):
        return False
    inner: list[Any] = [block.get(name) for name in ("tensor_parallel", "tp")]
    sizes = [block.get("autotp_size"), *(item.get("tp_size") for item in inner if isinstance(item, Mapping))]
    return any(_above_one(size) for size in sizes)


_TRACKER = "Redline sends metrics to the trackers of training.report_to: disable this block, and use that key"
# Dotted key -> (whether it is enabled, why it is refused). They would be ignored without a message, or do harm.
REFUSED_BLOCKS: dict[str, tuple[On, str]] = {
    "activation_checkpointing": (
        _any_set,
        "has no effect on models of transformers: use perf.activation_checkpointing",
    ),
    "autotuning": (
        _enabled,
        "works only with `deepspeed --autotuning`: use python -m training.benchmark advise",
    ),
    "checkpoint.load_universal": (
        bool,
        "is not supported, because a run resumes from the checkpoints that it saved itself: leave it out",
    ),
    "checkpoint.writer": (
        _any_set,
        "would change the files of a checkpoint after the manifest recorded their hashes: leave it out",
    ),
    "comet": (_enabled, _TRACKER),
    "compile": (
        lambda block: _any_set(block.get("deepcompile") if isinstance(block, Mapping) else block),
        "has no effect, because the Trainer does not call engine.compile(): use training.torch_compile",
    ),
    "csv_monitor": (_enabled, _TRACKER),
    "data_efficiency": (_enabled, "applies to DeepSpeed's own data loader, which Redline does not use: leave it out"),
    "dataloader_drop_last": (
        bool,
        "applies to DeepSpeed's own data loader, which Redline does not use: use training.dataloader_drop_last",
    ),
    "datastates_ckpt": (
        bool,
        "would change the files of a checkpoint after the manifest recorded their hashes: leave it out",
    ),
    "expert_parallel": (
        _enabled,
        "is not supported, because the ranks of an expert group would get different rows: leave it out",
    ),
    "hybrid_engine": (_enabled, "is for text generation in RLHF, which Redline does not do: leave it out"),
    "managed_gradient_accumulation": (
        lambda value: value is False,
        "is false, but the Trainer relies on DeepSpeed for gradient accumulation: leave it out",
    ),
    "pipeline": (
        _any_set,
        "needs a deepspeed.PipelineModule, which Redline does not build: use zero_optimization.stage 3",
    ),
    "sequence_parallel_size": (
        _above_one,
        "is not supported, because Redline does not split batches along the sequence: leave it out",
    ),
    "tensor_parallel": (
        _splits_tensors,
        "is not supported, because the ranks of a tensor group would get different rows: use zero_optimization.stage 3",
    ),
    "tensorboard": (_enabled, _TRACKER),
    "wandb": (_enabled, _TRACKER),
    "weight_quantization": (_any_set, "quantizes for inference only: use adapter.load_in_4bit"),
    "zero_optimization.elastic_checkpoint": (
        bool,
        "is not supported, because a run resumes with the number of ranks that saved its checkpoint: leave it out",
    ),
    "zero_optimization.load_from_fp32_weights": (
        lambda value: value is False,
        "is false, which rounds the weights to 16 bits when a run resumes: leave it out",
    ),
}


def rename_aliases(layer: Layer) -> None:
    """`bfloat16` is DeepSpeed's older name of `bf16`, which Hugging Face does not know. Raises UserError for both."""
    if "bfloat16" not in layer.values:
        return
    if "bf16" in layer.values:
        raise UserError(f"{layer.origin(('bfloat16',))}: bfloat16 and bf16 are two names of one block: keep bf16")
    layer.values = {("bf16" if key == "bfloat16" else key): value for key, value in layer.values.items()}
    for path in [path for path in layer.origins if path[:1] == ("bfloat16",)]:
        layer.origins[("bf16", *path[1:])] = layer.origins.pop(path)


def check_blocks(layer: Layer) -> None:
    """Raises UserError, with file and line, for a block of `REFUSED_BLOCKS`, for an "auto" that is not filled in,
    and for a combination that DeepSpeed reports only after the model was loaded, or not at all."""
    values = layer.values
    for dotted, (is_on, why) in REFUSED_BLOCKS.items():
        path = tuple(dotted.split("."))
        if is_on(layer.get(path)):
            raise UserError(f"{layer.nearest_origin(path)}: {dotted}: {why}")
    for path, value in _leaves(values):
        dotted = ".".join(path)
        if value == AUTO and dotted not in TAKE_AUTO:
            raise UserError(
                f'{layer.nearest_origin(path)}: {dotted} = "auto": this key does not take "auto": leave it out'
            )
    for broken, advice in (*_broken_zero(values), *_broken_optimizer(values), *_broken_schedule(values)):
        path = tuple(broken.split("."))
        raise UserError(f"{layer.nearest_origin(path)}: {broken}: {advice}")


def _leaves(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _broken_zero(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, advice) of each contradiction in `zero_optimization`."""
    zero = values.get("zero_optimization") or {}
    stage = zero.get("stage") or 0
    for name in ("cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory"):
        if zero.get(name):
            yield (
                f"zero_optimization.{name}",
                "is ignored by DeepSpeed: write offload_optimizer or offload_param",
            )
    for name, lowest in (("offload_optimizer", 1), ("offload_param", 3)):
        block = zero.get(name) or {}
        device = block.get("device") or "none"
        if device != "none" and stage < lowest:
            yield (
                f"zero_optimization.{name}",
                f"needs zero_optimization.stage {lowest} or above, and it is {stage}: raise it, or leave this out",
            )
        if device == "nvme" and stage < 3:
            yield (
                f"zero_optimization.{name}.device",
                f"nvme needs zero_optimization.stage 3, and it is {stage}: set it to 3, or use cpu",
            )
        if device == "nvme" and not block.get("nvme_path"):
            yield f"zero_optimization.{name}.device", "nvme needs a directory: set nvme_path in the same block"
    for name in GATHER_NAMES:
        if stage == 3 and zero.get(name) is False:
            yield f"zero_optimization.{name}", "is false, so final/ would contain no weights: set it to true"


def _broken_optimizer(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    name = str((values.get("optimizer") or {}).get("type"))
    zero = values.get("zero_optimization") or {}
    if not values.get("optimizer"):
        return
    optimizer = find_optimizer(name)
    if package := optimizer.find_missing():
        yield "optimizer.type", f"needs a package that is not installed: pip install {package.requirement}"
    if optimizer.refusal:
        yield "optimizer.type", optimizer.refusal
    elif not is_of_deepspeed(name) and zero.get("stage") and not values.get("zero_allow_untested_optimizer"):
        advice = 'set "zero_allow_untested_optimizer": true, or use training.optim instead of this block'
        yield "optimizer.type", f"{name} is an optimizer of PyTorch, which ZeRO does not take by default: {advice}"


def _broken_schedule(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    block = values.get("scheduler") or {}
    params = block.get("params") or {}
    if block.get("type") == "OneCycle" and params.get("cycle_min_lr") is None:
        yield "scheduler.params", "OneCycle needs the learning rate at the start of a cycle: set cycle_min_lr"
    if block and block.get("type") not in SCHEDULES_OF_DEEPSPEED:
        yield (
            "scheduler.type",
            "schedules of PyTorch do not work with ZeRO's optimizers: use training.lr_scheduler_type",
        )
    warmup = params.get("warmup_num_steps")
    if isinstance(warmup, int | float) and warmup < 1:
        yield "scheduler.params.warmup_num_steps", f"is {warmup}: must be a number of steps, 1 or more"


def fill_in(deepspeed: Mapping[str, Any], training: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON with "auto" wherever it leaves to DeepSpeed what the recipe says, and with gathering under ZeRO-3.

    training: the arguments, for rates that have another name. params: block -> type -> the names its `params` take.
    """
    filled: dict[str, Any] = dict.fromkeys(FROM_RECIPE, AUTO)
    filled |= {key: value for key, value in deepspeed.items() if value is not None or key not in FROM_RECIPE}
    for name in list_switches():
        block = filled.get(name) or {}
        filled[name] = {**block, "enabled": AUTO if block.get("enabled") is None else block["enabled"]}
    for block, names in (("optimizer", OPTIMIZER_PARAMS), ("scheduler", SCHEDULER_PARAMS)):
        if filled.get(block):
            filled[block] = _fill_params(filled[block], block, names, training, params)
    zero = filled.get("zero_optimization") or {"stage": 0}
    filled["zero_optimization"] = zero  # accelerate insists on the block
    if zero.get("stage") == 3 and not any(zero.get(name) is True for name in GATHER_NAMES):
        filled["zero_optimization"] = {**zero, GATHER: True}
    return filled


def _fill_params(
    block: Mapping[str, Any], name: str, keys: tuple[str, ...], training: Mapping[str, Any], known: Mapping[str, Any]
) -> dict[str, Any]:
    """An optimizer or scheduler block with its rates, decay and steps from the recipe where it leaves them out."""
    kind = block["type"]
    found = kind if kind in known[name] else kind.lower()
    taken = known[name].get(found)
    given = {key: value for key, value in (block.get("params") or {}).items() if value is not None}
    named = find_optimizer(found).own_rates if name == "optimizer" else OWN_RATES.get((name, found), ())
    own = () if "lr" in given else named
    filled = {key: training["learning_rate"] for key in own}
    filled |= {key: AUTO for key in keys if (taken is None or key in taken) and not (own and key == "lr")}
    return {**block, "params": filled | given}


def describe_filled(before: Mapping[str, Any], after: Mapping[str, Any], training: Mapping[str, Any]) -> str | None:
    """One line on what `fill_in` added to `optimizer`, `scheduler` and `zero_optimization`; None: nothing."""
    values = {
        "lr": training["learning_rate"],
        "betas": [training["adam_beta1"], training["adam_beta2"]],
        "eps": training["adam_epsilon"],
        "weight_decay": training["weight_decay"],
        "warmup_min_lr": 0,
        "warmup_max_lr": training["learning_rate"],
        "warmup_num_steps": f"training.warmup_steps ({training['warmup_steps']:g})",
        "total_num_steps": "all steps of the run",
    }
    said = dict(_leaves(before))
    added = []
    for path, value in _leaves(after):
        if said.get(path) is None and path[0] in ("optimizer", "scheduler", "zero_optimization"):
            added.append(f"{'.'.join(path)} = {values.get(path[-1]) if value == AUTO else value}")
    return f"missing in the DeepSpeed JSON, so taken from the recipe: {', '.join(added)}" if added else None
