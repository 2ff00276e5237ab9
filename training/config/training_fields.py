"""`training:` = the fields of the installed `transformers.TrainingArguments`, without importing it.

The source file is parsed instead: importing transformers costs seconds and torch, and a typing error in a recipe is
to be found before that. Types and help texts become a pydantic model, enums the list of their values.
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
from training.optim.choose import describe_offer

REFUSED = {
    "accelerator_config": "batches do not come from accelerate: nothing there would take effect",
    "auto_find_batch_size": "a smaller batch leaves accumulation alone, so the global batch shrinks unseen: set "
    "training.per_device_train_batch_size",
    "batch_eval_metrics": "evaluation computes the loss alone",
    "bf16_full_eval": "evaluations come during the training and compute in its precision: use training.bf16",
    "data_seed": "the order of the data is that of data.seed",
    "dataloader_in_order": "batches always come in order: a resumed run sees the same ones",
    "ddp_backend": "it is nccl on GPUs and gloo on a CPU",
    "deepspeed": "write `deepspeed: zero2_bf16` at the top level of the recipe, or --deepspeed",
    "disable_tqdm": "there is no progress bar: lines of steps say more, in files too",
    "do_eval": "evaluation follows training.eval_strategy",
    "do_predict": "use python -m training.generate",
    "do_train": "train.py always trains",
    "enable_jit_checkpoint": "ranks do not agree on the step, a signal to one of them hangs the run; signals are "
    "handled without it",
    "eval_accumulation_steps": "evaluation computes the loss alone: there are no predictions to move",
    "eval_do_concat_batches": "evaluation computes the loss alone: there are no predictions to join",
    "eval_use_gather_object": "evaluation computes the loss alone: there are no predictions to gather",
    "fp16_full_eval": "evaluations come during the training and compute in its precision: use training.fp16",
    "hub_always_push": "after the run, `hf upload REPO RUN/final`",
    "hub_model_id": "after the run, `hf upload REPO RUN/final`",
    "hub_private_repo": "after the run, `hf upload REPO RUN/final --private`",
    "hub_revision": "after the run, `hf upload REPO RUN/final --revision NAME`",
    "hub_strategy": "after the run, `hf upload REPO RUN/final`",
    "hub_token": "it would be written to the run directory: set the environment variable HF_TOKEN",
    "ignore_data_skip": "the data continues where it stood, at no cost",
    "include_for_metrics": "evaluation computes the loss alone",
    "include_num_input_tokens_seen": "costs a gather and a sync per micro-batch; tokens are counted in metrics.jsonl "
    "without it",
    "label_names": "the collator's labels are the labels",
    "length_column_name": "lengths are known: use data.group_by_length",
    "local_rank": "the launcher sets it",
    "logging_dir": "everything of a run is below training.output_dir",
    "logging_first_step": "the first step is always logged",
    "logging_nan_inf_filter": "true hides NaN losses and syncs every micro-step; it is always false here, leave it out",
    "logging_steps": "use monitor.train_every",
    "logging_strategy": "logs are by step: use monitor.train_every",
    "parallelism_config": "it is a Python object; parallelism comes from the launcher and --deepspeed",
    "prediction_loss_only": "evaluation computes the loss alone",
    "push_to_hub": "it would upload the whole run directory: after the run, `hf upload REPO RUN/final`",
    "restore_callback_states_from_checkpoint": "no callback keeps a state there; what a run counts is always restored",
    "resume_from_checkpoint": "use --resume auto|PATH|never",
    "skip_memory_metrics": "memory is in perf/memory_*, at no cost",
    "torch_empty_cache_steps": "clears the cache between forward and backward: use perf.empty_cache_every",
    "trackio_bucket_id": "trackio is not offered: training.report_to takes wandb and tensorboard",
    "trackio_space_id": "trackio is not offered: training.report_to takes wandb and tensorboard",
    "trackio_static_space_id": "trackio is not offered: training.report_to takes wandb and tensorboard",
    "train_sampling_strategy": "rows come in a random order of data.seed: use data.group_by_length",
}
# Removed in transformers 5; those that have a key here are synonyms.
REMOVED = {
    "adafactor": "use training.optim: adafactor",
    "bf16_opt_level": "use training.bf16",
    "dispatch_batches": "every rank reads its own rows",
    "include_inputs_for_metrics": "evaluation computes the loss alone",
    "include_tokens_per_second": "perf/tokens_per_second is always measured",
    "jit_mode_eval": "use training.torch_compile",
    "mp_parameters": "use --deepspeed",
    "past_index": "it was of models that keep a memory between batches",
    "push_to_hub_model_id": "after the run, `hf upload REPO RUN/final`",
    "push_to_hub_organization": "after the run, `hf upload REPO RUN/final`",
    "push_to_hub_token": "set the environment variable HF_TOKEN",
    "ray_scope": "there is no search of hyperparameters",
    "save_safetensors": "weights are always saved so",
    "sharded_ddp": "use --deepspeed",
    "split_batches": "every rank reads its own rows",
    "torchdynamo": "use training.torch_compile",
    "tpu_metrics_debug": "TPUs are not supported",
    "tpu_num_cores": "TPUs are not supported",
    "use_ipex": "torch has it built in",
    "use_legacy_prediction_loop": "evaluation computes the loss alone",
    "use_mps_device": "the device is detected automatically",
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
    """Dotted key -> reason, of keys that are fields but not taken and of those that transformers has dropped."""
    present = fields()
    gone = {name: f"was removed from TrainingArguments: {use}" for name, use in REMOVED.items() if name not in present}
    return {f"training.{name}": reason for name, reason in {**REFUSED, **gone}.items()}


@cache
def training_section() -> type[BaseModel]:
    """Strict model of the fields that a recipe may set. Absent fields stay absent (`exclude_unset`)."""
    taken = {
        name: (annotation, Field(None, description=text))
        for name, (annotation, text) in fields().items()
        if name not in REFUSED
    }
    one = Literal["wandb", "tensorboard", "none"]  # the sinks that keep the names of perf/ keys
    taken["report_to"] = (one | list[one], Field(None, description="beside metrics.jsonl, which is always written"))
    taken["optim"] = (fields()["optim"][0], Field(None, description=f"the optimizer; {describe_offer()}"))
    project = "the project of W&B; left out: WANDB_PROJECT, else redline"
    taken["project"] = (fields()["project"][0], Field(None, description=project))
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
