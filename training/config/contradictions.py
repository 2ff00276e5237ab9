"""Settings that contradict each other.

Nothing here needs torch. A setting that is only unwise is no error: the module that uses it logs a warning.
"""

import importlib.util
from collections.abc import Callable, Iterator

from data_prep.errors import UserError
from data_prep.recipe import MODEL_REPLACES, Layer, Replaces, either
from training.config.ranges import check_ranges
from training.config.sections import CHECKPOINTING, Config
from training.precision import find_precision, list_switches

# Of each pair, a later layer replaces the key of an earlier one. Both keys in one layer are a contradiction.
REPLACES: Replaces = (
    *either(("training", "max_steps"), ("training", "num_train_epochs")),
    *either(("training", "bf16"), ("training", "fp16")),
    *either(("perf", "compile"), ("training", "torch_compile")),
    *either(("perf", "activation_checkpointing"), ("training", "gradient_checkpointing")),
    *either(("perf", "activation_checkpointing"), ("training", "activation_checkpointing")),
    *either(("data", "num_workers"), ("training", "dataloader_num_workers")),
    *MODEL_REPLACES,
)

Broken = Iterator[tuple[tuple[str, ...], str]]  # the keys that contradict each other, and what to do


def check_contradictions(config: Config, layer: Layer) -> None:
    """Raises UserError for the first rule that is broken. The message names the origin of each key."""
    for rule in RULES:
        for keys, advice in rule(config):
            where = " and ".join(f"{key} ({layer.nearest_origin(tuple(key.split('.')))})" for key in keys)
            raise UserError(f"{where}: {advice}")


def _steps_or_epochs(config: Config) -> Broken:
    if config.training.get("max_steps", -1) > 0 and config.training.get("num_train_epochs") is not None:
        yield ("training.max_steps", "training.num_train_epochs"), "both set the length of the run: keep one"


def _one_precision(config: Config) -> Broken:
    on = tuple(f"training.{switch}" for switch in list_switches() if config.training.get(switch))
    if len(on) > 1:
        yield on, "only one precision can be true: set the others to false"


def _one_model(config: Config) -> Broken:
    model = config.model
    if model.path and model.kind:
        yield ("model.path", "model.kind"), "both choose the model: keep one, and set the other to null"
    if model.path and model.config:
        yield ("model.path", "model.config"), "a pretrained model has its own config: set one of the two keys to null"
    if model.kind and model.config.get("model_type", "minigpt") != "minigpt":
        yield ("model.kind", "model.config.model_type"), "both choose the architecture: keep one"
    if model.revision and not model.path:
        yield ("model.revision",), "applies only to model.path, which is not set: set model.path, or leave this key out"
    if model.trust_remote_code and not model.path and not model.config:
        yield (
            ("model.trust_remote_code",),
            "applies only to model.path, which is not set: set it, or leave this key out",
        )


def _adapter(config: Config) -> Broken:
    adapter = config.adapter
    for name in ("load_in_4bit", "dora", "rslora"):
        if getattr(adapter, name) and adapter.method == "none":
            yield (f"adapter.{name}",), "is true, but adapter.method is none: set adapter.method: lora"
    unused = sorted(adapter.model_fields_set - {"load_in_4bit", "dora", "rslora", "double_quant"})
    if unused and "method" not in unused:
        yield (
            (f"adapter.{unused[0]}",),
            "is set, but adapter.method is none: set adapter.method: lora (--use_peft), or leave this key out",
        )
    if adapter.method == "lora" and not config.model.path:
        yield ("adapter.method",), "is lora, but model.path is not set: LoRA needs pretrained weights: set model.path"
    if adapter.load_in_4bit and config.argument("fsdp"):
        yield (
            ("adapter.load_in_4bit", "training.fsdp"),
            "FSDP cannot shard 4-bit weights in Redline: remove one of the two keys",
        )


def _best_model(config: Config) -> Broken:
    argument = config.argument
    best, metric = argument("save_strategy") == "best", argument("metric_for_best_model")
    if metric not in (None, "loss", "eval_loss"):
        yield ("training.metric_for_best_model",), f"is {metric!r}, but evaluation computes only the loss: leave it out"
    if argument("greater_is_better"):
        yield (
            ("training.greater_is_better",),
            "is true, but the metric is the loss, whose lowest value is the best: leave it out",
        )
    if best and argument("eval_strategy") == "no":
        yield (
            ("training.save_strategy", "training.eval_strategy"),
            "evaluations choose the best checkpoint: set eval_strategy to steps or epoch",
        )
    if not argument("load_best_model_at_end"):
        return
    if argument("eval_strategy") == "no" or (argument("save_strategy") not in ("best", argument("eval_strategy"))):
        keys = ("training.load_best_model_at_end", "training.eval_strategy", "training.save_strategy")
        yield (
            keys,
            "each checkpoint needs an evaluation: set both strategies to the same value, steps or epoch",
        )
    elif argument("eval_strategy") == "steps" == argument("save_strategy"):
        eval_steps, save_steps = argument("eval_steps") or 0, argument("save_steps")
        whole = eval_steps >= 1 and save_steps >= 1 and save_steps % eval_steps == 0
        if not whole and eval_steps != save_steps:
            keys = ("training.load_best_model_at_end", "training.save_steps", "training.eval_steps")
            yield (
                keys,
                f"save_steps = {save_steps} must be a multiple of eval_steps = {eval_steps}",
            )


def _evaluation(config: Config) -> Broken:
    data = config.data
    no_documents = data.validation_share == 0 and all(source.split == "train" for source in data.sources)
    if config.argument("eval_strategy") != "no" and no_documents:
        yield (
            ("training.eval_strategy", "data.validation_share"),
            "no documents are held out for evaluation: raise data.validation_share, or set eval_strategy to no",
        )


def _loader(config: Config) -> Broken:
    asked, other = config.data.num_workers, config.training.get("dataloader_num_workers")
    if asked != "auto" and other is not None:
        yield (
            ("data.num_workers", "training.dataloader_num_workers"),
            "both set the number of loader processes: keep one",
        )
    if asked != 0 and (other is None or other > 0):
        return
    for name in ("dataloader_persistent_workers", "dataloader_prefetch_factor"):
        if config.training.get(name):
            yield (
                (f"training.{name}",),
                "applies only to loader processes, and there are none: set data.num_workers above 0",
            )


def _unpacked(config: Config) -> Broken:
    for name in ("group_by_length", "max_tokens_per_batch"):
        if getattr(config.data, name) and config.data.packing != "none":
            yield (
                (f"data.{name}", "data.packing"),
                "packed rows all have the same length: set data.packing to none, or leave the first key out",
            )


def _micro_batch(config: Config) -> Broken:
    if config.perf.micro_batch_size != "auto":
        return
    if config.data.max_tokens_per_batch:
        yield ("perf.micro_batch_size", "data.max_tokens_per_batch"), "both set the size of the micro-batch: keep one"
    if config.argument("auto_find_batch_size"):
        yield (
            ("perf.micro_batch_size", "training.auto_find_batch_size"),
            "both choose the size of the micro-batch: keep the first",
        )


def _one_compiler(config: Config) -> Broken:
    if config.perf.compile not in ("blocks", "model"):
        return
    for name in ("torch_compile", "torch_compile_backend", "torch_compile_mode"):
        if config.training.get(name):
            yield ("perf.compile", f"training.{name}"), "both compile the model: keep the first"
    if config.argument("fsdp"):
        yield (
            ("perf.compile", "training.fsdp"),
            "FSDP moves the weights of a layer while it is computed, which a compiled layer does not allow for: "
            "set perf.compile to off",
        )


def _streaming(config: Config) -> Broken:
    if not config.data.streaming:
        return
    if (config.argument("max_steps") or -1) <= 0:
        yield (
            ("data.streaming", "training.num_train_epochs"),
            "a stream has no known length, so epochs cannot set the length of the run: set training.max_steps",
        )
    if config.data.verify == "full":
        yield (
            ("data.streaming", "data.verify"),
            "a stream has no store whose shards could be verified: leave verify out",
        )
    for name in ("eval_strategy", "save_strategy"):
        if config.argument(name) == "epoch":
            yield (
                ("data.streaming", f"training.{name}"),
                f"a stream has no known end of an epoch: set training.{name} to steps",
            )
    for name in ("group_by_length", "max_tokens_per_batch"):
        if getattr(config.data, name):
            yield (
                ("data.streaming", f"data.{name}"),
                f"{name} needs the lengths of all rows, which a stream does not have: set data.streaming to false",
            )


def _depends(config: Config) -> Broken:
    """Arguments that have an effect only with another argument."""
    argument = config.argument
    schedule = argument("lr_scheduler_type")
    if schedule in ("reduce_lr_on_plateau", "greedy") and argument("eval_strategy") == "no":
        keys = ("training.lr_scheduler_type", "training.eval_strategy")
        yield keys, f"the schedule {schedule} depends on the evaluation loss: set eval_strategy to steps or epoch"
    if argument("fsdp_config") and not argument("fsdp"):
        yield (
            ("training.fsdp_config",),
            "applies only to training.fsdp, which is not set: set training.fsdp, or leave this key out",
        )
    if argument("liger_kernel_config") and not argument("use_liger_kernel"):
        yield (
            ("training.liger_kernel_config",),
            "applies only to training.use_liger_kernel, which is not set: set it to true, or leave this key out",
        )
    is_off = config.perf.activation_checkpointing == "off" and not any(map(argument, CHECKPOINTING))
    for name in CHECKPOINTING:
        if argument(f"{name}_kwargs") and is_off:
            yield (
                (f"training.{name}_kwargs",),
                f"applies only to training.{name}, which is not set: set it to true, or leave this key out",
            )
    if argument("eval_strategy") == "no":
        for name in ("eval_delay", "eval_on_start"):
            if argument(name):
                yield (
                    (f"training.{name}", "training.eval_strategy"),
                    "the run does not evaluate: set eval_strategy to steps or epoch, or leave the first key out",
                )
    if "tpu_metrics_debug" in str(argument("debug")):
        yield ("training.debug",), "contains tpu_metrics_debug, and TPUs are not supported: use underflow_overflow"


def _one_checkpointing(config: Config) -> Broken:
    training = config.training
    switches = {name: training[name] for name in CHECKPOINTING if training.get(name) is not None}
    if len(set(switches.values())) > 1:
        yield (
            tuple(f"training.{name}" for name in switches),
            "are two names of one setting, with different values: keep one",
        )
    mode = config.perf.activation_checkpointing
    for name, on in switches.items():
        if "activation_checkpointing" in config.perf.model_fields_set and mode != ("full" if on else "off"):
            means = "true means full" if on else "false means off"
            yield ("perf.activation_checkpointing", f"training.{name}"), f"disagree ({means}): set the second to null"
    if (mode != "off" or any(switches.values())) and (config.argument("fsdp_config") or {}).get(
        "activation_checkpointing"
    ):
        yield (
            ("perf.activation_checkpointing", "training.fsdp_config"),
            "both checkpoint activations: set fsdp_config.activation_checkpointing to false",
        )


def _owned(config: Config) -> Broken:
    """Arguments with one allowed value, because data or measurements would be wrong with another."""
    if config.training.get("remove_unused_columns"):
        yield ("training.remove_unused_columns",), "is true, but the collator needs every column: leave it out"
    for name in CHECKPOINTING:
        if (config.training.get(f"{name}_kwargs") or {}).get("use_reentrant"):
            yield (
                (f"training.{name}_kwargs",),
                "sets use_reentrant to true, which loses the gradients of adapters: set it to false",
            )
    precision = find_precision(config.training)
    if config.training.get("use_cpu") and precision.obstacle("cpu"):
        yield (
            ("training.use_cpu", f"training.{precision.switch}"),
            f"{precision.switch} needs a GPU: set training.bf16 instead",
        )


def _liger(config: Config) -> Broken:
    """The Trainer's own switch brings Liger's layers and its loss."""
    key = "training.use_liger_kernel"
    if not config.training.get("use_liger_kernel"):
        return
    if not config.model.path and not config.model.config.get("model_type"):
        yield (
            (key,),
            "is true, but Liger kernels exist only for Hugging Face architectures, not for MiniGPT: set it to false",
        )
    if importlib.util.find_spec("liger_kernel") is None:
        yield (key,), "is true, but its package is not installed: pip install liger-kernel"
    if config.argument("label_smoothing_factor"):
        keys = (key, "training.label_smoothing_factor")
        yield keys, "label smoothing needs the logits, which Liger's loss does not compute: keep one of the two keys"
    for name, free in (("fused_layers", ("auto", "off")), ("loss_kernel", ("auto", "plain"))):
        if getattr(config.perf, name) not in free:
            advice = "the first brings Liger's kernels for layers and loss, and the second chooses: keep one"
            yield (key, f"perf.{name}"), advice


RULES: tuple[Callable[[Config], Broken], ...] = (
    check_ranges,
    _steps_or_epochs,
    _one_precision,
    _one_model,
    _adapter,
    _best_model,
    _evaluation,
    _loader,
    _unpacked,
    _micro_batch,
    _one_compiler,
    _streaming,
    _one_checkpointing,
    _owned,
    _liger,
    _depends,
)
