"""`training:` = the fields of the installed `transformers.TrainingArguments`, without importing it.

The source file is parsed instead. Importing transformers takes seconds and imports torch, and a mistyped key in a
recipe is reported before that. Types and help texts become a pydantic model, and enums the list of their values.
"""

import ast
import importlib.util
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from data_prep.errors import UserError
from training.config.field_texts import DESCRIPTIONS

_LOSS_ONLY = "evaluation computes only the loss, so this key has no effect: leave it out"
_UPLOAD = "Redline does not upload while it trains: after the run, use `hf upload REPO RUN/final`"
_TRACKIO = "trackio is not supported: training.report_to takes wandb and tensorboard"
_DEEPSPEED = "use --deepspeed with a configuration from ds_configs/"
REFUSED = {
    "accelerator_config": "this key has no effect, because accelerate does not load the batches: leave it out",
    "auto_find_batch_size": "this key lowers the micro-batch without raising the accumulation, so the global batch "
    "shrinks unseen: set training.per_device_train_batch_size, or perf.micro_batch_size: auto",
    "batch_eval_metrics": _LOSS_ONLY,
    "bf16_full_eval": "evaluation runs during training and in its precision: use training.bf16",
    "data_seed": "the order of the data depends on data.seed: set that",
    "dataloader_in_order": "batches always come in order, so that a resumed run gets the same ones: leave it out",
    "ddp_backend": "the backend is nccl on GPUs and gloo on a CPU: leave it out",
    "deepspeed": "write `deepspeed: zero2_bf16` at the top level of the recipe, or use --deepspeed",
    "disable_tqdm": "there is no progress bar to disable, only log lines: leave it out",
    "do_eval": "use training.eval_strategy to choose when to evaluate",
    "do_predict": "use python -m training.generate",
    "do_train": "train.py always trains: leave it out",
    "enable_jit_checkpoint": "a signal to one rank would hang the run, because ranks do not agree on the step. Redline "
    "handles signals without this key: leave it out",
    "eval_accumulation_steps": _LOSS_ONLY,
    "eval_do_concat_batches": _LOSS_ONLY,
    "eval_use_gather_object": _LOSS_ONLY,
    "fp16_full_eval": "evaluation runs during training and in its precision: use training.fp16",
    "hub_always_push": _UPLOAD,
    "hub_model_id": _UPLOAD,
    "hub_private_repo": f"{_UPLOAD[:-1]} --private`",
    "hub_revision": f"{_UPLOAD[:-1]} --revision NAME`",
    "hub_strategy": _UPLOAD,
    "hub_token": "the token would be written to the run directory: set the environment variable HF_TOKEN instead",
    "ignore_data_skip": "a resumed run continues at its place in the data without reading what comes before: leave it "
    "out",
    "include_for_metrics": _LOSS_ONLY,
    "include_num_input_tokens_seen": "this key costs a gather and a synchronization in each micro-batch. "
    "metrics.jsonl has the number of tokens without it: leave it out",
    "label_names": "the labels are those that the collator builds: leave it out",
    "length_column_name": "the token store has the lengths of all rows: use data.group_by_length",
    "local_rank": "the launcher sets the local rank: leave it out",
    "logging_dir": "all files of a run are in its run directory: use training.output_dir",
    "logging_first_step": "the first step is always logged: leave it out",
    "logging_nan_inf_filter": "true hides NaN losses and synchronizes in each micro-batch. It is always false: leave "
    "it out",
    "logging_steps": "use monitor.train_every",
    "logging_strategy": "the interval of logging is a number of steps: use monitor.train_every",
    "parallelism_config": "a recipe cannot hold this Python object: choose parallelism with the launcher and "
    "--deepspeed",
    "prediction_loss_only": _LOSS_ONLY,
    "push_to_hub": "this key would upload the whole run directory: after the run, use `hf upload REPO RUN/final`",
    "restore_callback_states_from_checkpoint": "a resumed run always restores its own counters: leave it out",
    "resume_from_checkpoint": "use --resume auto|PATH|never",
    "skip_memory_metrics": "memory is always measured, at no cost, as perf/memory_*: leave it out",
    "torch_empty_cache_steps": "this key clears the cache between forward and backward: use perf.empty_cache_every",
    "trackio_bucket_id": _TRACKIO,
    "trackio_space_id": _TRACKIO,
    "trackio_static_space_id": _TRACKIO,
    "train_sampling_strategy": "rows come in random order, by data.seed; to batch rows of similar length, use "
    "data.group_by_length",
}
# Removed in transformers 5; those that have a key here are synonyms.
REMOVED = {
    "adafactor": "use training.optim: adafactor",
    "bf16_opt_level": "use training.bf16",
    "dispatch_batches": "every rank reads its own rows: leave it out",
    "include_inputs_for_metrics": _LOSS_ONLY,
    "include_tokens_per_second": "perf/tokens_per_second is always measured: leave it out",
    "jit_mode_eval": "use training.torch_compile",
    "mp_parameters": _DEEPSPEED,
    "past_index": "Redline trains no models that keep a memory between batches: leave it out",
    "push_to_hub_model_id": _UPLOAD,
    "push_to_hub_organization": _UPLOAD,
    "push_to_hub_token": "set the environment variable HF_TOKEN",
    "ray_scope": "Redline has no hyperparameter search: leave it out",
    "save_safetensors": "weights are always saved as safetensors: leave it out",
    "sharded_ddp": _DEEPSPEED,
    "split_batches": "every rank reads its own rows: leave it out",
    "torchdynamo": "use training.torch_compile",
    "tpu_metrics_debug": "TPUs are not supported: leave it out",
    "tpu_num_cores": "TPUs are not supported: leave it out",
    "use_ipex": "PyTorch includes its optimizations: leave it out",
    "use_legacy_prediction_loop": _LOSS_ONLY,
    "use_mps_device": "the device is detected automatically: leave it out",
    "group_by_length": "use data.packing: best_fit (or data.group_by_length)",
}

# What the empty recipe trains with where it differs from TrainingArguments: MiniGPT from scratch on a CPU or one GPU.
DEFAULTS: dict[str, Any] = {
    "max_steps": 120,  # about 3 minutes of the quickstart on 2 CPU cores
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,  # HF's 8 at a large vocabulary doubles the memory peak of training
    "learning_rate": 1e-3,  # small models from scratch; a fine-tune says its own
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,  # below 1: a fraction of all steps
    "weight_decay": 0.1,
    "adam_beta2": 0.95,  # usual from GPT-3 on: 0.999 forgets a loss spike too slowly
    "optim": "adamw_torch_fused",  # 9 to 16 times foreach on a CPU
    "bf16": True,  # twice the matmul rate of fp32 on CPU and GPU, no loss scaling
    "eval_strategy": "steps",
    "eval_steps": 40,
    "save_strategy": "steps",
    "save_steps": 60,
    "save_total_limit": 2,  # one good checkpoint remains if the newest is torn
    "report_to": "none",  # metrics.jsonl and report.html are always written
    "ddp_find_unused_parameters": False,  # decoders use all of them; HF's default walks the graph at every step
    "ddp_broadcast_buffers": False,  # of decoders they are constants (rotary tables): HF's default sends them each step
    "dataloader_drop_last": True,  # whole epochs: the rows at the very end that fill no step are left out
}


def refused() -> dict[str, str]:
    """Dotted key -> reason, of fields that a recipe cannot set and of fields that transformers has removed."""
    present = fields()
    gone = {name: f"was removed from TrainingArguments: {use}" for name, use in REMOVED.items() if name not in present}
    return {f"training.{name}": reason for name, reason in {**REFUSED, **gone}.items()}


@cache
def training_section() -> type[BaseModel]:
    """Strict model of the fields that a recipe may set. Absent fields stay absent (`exclude_unset`)."""
    taken = {
        name: (annotation, Field(None, description=DESCRIPTIONS.get(name, text)))
        for name, (annotation, text) in fields().items()
        if name not in REFUSED
    }
    one = Literal["wandb", "tensorboard", "none"]  # the sinks that keep the names of perf/ keys
    taken["report_to"] = (one | list[one], Field(None, description=DESCRIPTIONS["report_to"]))
    config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    definitions: Any = taken
    return create_model("TrainingSection", __config__=config, __doc__="Fields of TrainingArguments.", **definitions)


@cache
def fields() -> dict[str, tuple[Any, str | None]]:
    """Field -> (type, help text), in source order."""
    found = {}
    for node in _class("training_args.py", "TrainingArguments").body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not node.target.id.startswith("_"):
            found[node.target.id] = (_type(node.annotation), _help(node.value))
    return found


@cache
def hf_defaults() -> dict[str, Any]:
    """Field -> default of TrainingArguments, of the fields whose default is a literal."""
    found = {}
    for node in _class("training_args.py", "TrainingArguments").body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(node.value, ast.Call):
            for keyword in node.value.keywords:
                if keyword.arg == "default" and isinstance(keyword.value, ast.Constant | ast.UnaryOp):
                    found[node.target.id] = ast.literal_eval(keyword.value)
    return found


def _package() -> Path:
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("transformers is not installed in this Python: make install && source .venv/bin/activate")
    return Path(next(iter(spec.submodule_search_locations)))


@cache
def _tree(file: str) -> ast.Module:
    return ast.parse((_package() / file).read_text(encoding="utf-8"))


def _class(file: str, name: str) -> ast.ClassDef:
    return next(node for node in _tree(file).body if isinstance(node, ast.ClassDef) and node.name == name)


@cache
def _enums() -> dict[str, tuple[str, ...]]:
    """Enum name -> its values, from the three files that TrainingArguments takes enums from."""
    classes = [
        node
        for file in ("training_args.py", "trainer_utils.py", "debug_utils.py")
        for node in _tree(file).body
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Enum") for base in node.bases)
    ]
    return {node.name: tuple(_values(node)) for node in classes}


def _values(node: ast.ClassDef) -> Iterator[str]:
    for assign in node.body:
        if isinstance(assign, ast.Assign) and isinstance(assign.value, ast.Constant):
            yield str(assign.value.value)


def _help(value: ast.expr | None) -> str | None:
    for node in ast.walk(value) if value is not None else ():
        if isinstance(node, ast.Dict):
            for key, text in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "help" and isinstance(text, ast.Constant):
                    return " ".join(str(text.value).replace("%%", "%").split())
    return None


_PLAIN = {"int": int, "float": float, "str": str, "bool": bool, "dict": dict[str, Any], "Any": Any}


def _type(node: ast.expr) -> Any:
    """An annotation as a type. An enum beside `str` means its values; an unknown class cannot come from YAML."""
    if isinstance(node, ast.Constant):
        return None if node.value is None else _type(ast.parse(str(node.value), mode="eval").body)
    if isinstance(node, ast.BinOp):
        return _union([*_operands(node)])
    if isinstance(node, ast.Name):
        return _PLAIN.get(node.id) or (Literal[_enums()[node.id]] if node.id in _enums() else Any)
    if isinstance(node, ast.Subscript):
        arguments = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        name = ast.unparse(node.value).rpartition(".")[2]
        if name in ("Optional", "Union"):
            return _union([*arguments, ast.Constant(None)] if name == "Optional" else list(arguments))
        if name == "Literal":
            return Literal[tuple(ast.literal_eval(argument) for argument in arguments)]
        if name in ("list", "List"):
            return list[_type(arguments[0])]
        if name in ("dict", "Dict"):
            return dict[str, _type(arguments[1])]
    raise TypeError(f"TrainingArguments has an annotation of a new kind: {ast.unparse(node)}")


def _operands(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.BinOp):
        yield from _operands(node.left)
        yield from _operands(node.right)
    else:
        yield node


def _union(nodes: list[ast.expr]) -> Any:
    names = [node.id for node in nodes if isinstance(node, ast.Name)]
    if any(name in _enums() for name in names):
        nodes = [node for node in nodes if not (isinstance(node, ast.Name) and node.id == "str")]
    return typing.Union[tuple(_type(node) for node in nodes)]  # noqa: UP007
