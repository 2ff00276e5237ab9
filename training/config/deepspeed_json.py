"""A DeepSpeed JSON: found, read with line numbers, and checked with the keys that DeepSpeed knows and with the recipe.

DeepSpeed ignores an unknown top-level key without a message, and Hugging Face finds a disagreement only when the model
is built. Both are errors here before torch is imported. A number in the JSON sets a value that the recipe leaves out;
`"auto"` takes the value of the recipe.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.recipe import KeyPath, Layer, did_you_mean, find_file, shown_path
from data_prep.recipe.places import find_shipped, list_places
from data_prep.recipe.yaml_file import parse_yaml
from training.config.deepspeed_blocks import check_blocks, rename_aliases
from training.config.sections import Config

DEEPSPEED_DIR = find_shipped("ds_configs")
KEYS_FILE = Path(__file__).with_name("deepspeed_keys.json")
ANYTHING = "*"

# JSON key -> field of TrainingArguments that says the same.
SAME = {
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
    "bf16.enabled": "bf16",
    "fp16.enabled": "fp16",
    "optimizer.params.lr": "learning_rate",
    "optimizer.params.eps": "adam_epsilon",
    "optimizer.params.weight_decay": "weight_decay",
    "optimizer.params.betas.0": "adam_beta1",
    "optimizer.params.betas.1": "adam_beta2",
    "scheduler.params.warmup_max_lr": "learning_rate",
    "scheduler.params.warmup_num_steps": "warmup_steps",
    "scheduler.params.total_num_steps": "max_steps",
}
KINDS = {"boolean": (bool, "true or false"), "number": ((int, float), "a number"), "string": (str, "a string")}
# JSON block -> field that a recipe may not set beside it: HF would silently prefer the block.
INSTEAD = {"optimizer": "optim", "scheduler": "lr_scheduler_type"}


def read_deepspeed(name: str) -> tuple[Layer, Path]:
    """By path, or by bare name from ds_configs/. Origins have lines.

    Raises UserError: not found, not JSON, a key twice, a key that DeepSpeed does not know.
    """
    file = find_file(name, list_places("ds_configs"), ".json", "DeepSpeed config")
    shown = shown_path(file)
    try:
        text = file.read_text(encoding="utf-8")
        values = json.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{shown}: cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{shown}:{error.lineno}: not valid JSON: {error.msg}") from None
    # JSON is YAML once tabs, legal only between its tokens, are blanks: that parser knows lines and finds duplicates.
    layer = parse_yaml(text.replace("\t", " "), shown)
    layer.values = values
    _check_keys(layer, values, key_table()["keys"], ())
    for block, known in key_table()["params"].items():
        if isinstance(values.get(block), dict):
            _check_params(layer, values[block], block, known)
    rename_aliases(layer)
    check_blocks(layer)
    return layer, file


@cache
def key_table() -> dict[str, Any]:
    """`keys`: nested, a value's kind, and "*" for free-form; `removed`: dotted key -> why; `params`: those of every
    optimizer and scheduler, by block and type. See deepspeed_keys.py."""
    return json.loads(KEYS_FILE.read_text(encoding="utf-8"))


def _check_keys(layer: Layer, values: Mapping[str, Any], known: Mapping[str, Any], path: KeyPath) -> None:
    for key, value in values.items():
        here = (*path, key)
        dotted = ".".join(map(str, here))
        if dotted in key_table()["removed"]:
            raise UserError(f"{layer.origin(here)}: {dotted}: {key_table()['removed'][dotted]}")
        if key not in known:
            near = did_you_mean(key, known).replace("mean ", f"mean {'.'.join(map(str, (*path, '')))}")
            raise UserError(f"{layer.origin(here)}: unknown DeepSpeed key {dotted} = {json.dumps(value)}{near}")
        below = known[key]
        if isinstance(below, dict) and isinstance(value, dict):
            _check_keys(layer, value, below, here)
        elif isinstance(below, dict) and value is not None and value != "auto":
            raise UserError(f"{layer.origin(here)}: {dotted} = {json.dumps(value)}: must be an object with keys")
        elif not isinstance(below, dict):
            _check_value(layer, here, value, below)


def _check_params(layer: Layer, values: Mapping[str, Any], block: str, known: Mapping[str, list[str] | None]) -> None:
    """`type` and `params` of the block `optimizer` or `scheduler`; DeepSpeed ignores a block without a type."""
    name = values.get("type")
    if name is None:
        raise UserError(f"{layer.origin((block,))}: {block} has no type: set {block}.type, or leave the block out")
    found = name if name in known else name.lower()  # DeepSpeed's own optimizers are known in any case
    if found not in known:
        raise UserError(
            f"{_shown(layer, (block, 'type'), name)}: DeepSpeed has no {block} of this name{did_you_mean(name, known)}"
        )
    taken, params = known[found], values.get("params")
    if taken is None or not isinstance(params, dict):
        return
    for key in params:
        if key not in taken:
            origin = layer.origin((block, "params", key))
            near = did_you_mean(key, taken)
            raise UserError(f"{origin}: {block}.params.{key}: {name} has no such parameter{near}")


def _check_value(layer: Layer, path: KeyPath, value: Any, kind: Any) -> None:
    """DeepSpeed would report a wrong type only after model and data were loaded, or take it for true.

    kind: as in the table. `null` and "auto" stand for a default anywhere.
    """
    if value in (None, "auto") or kind in (None, ANYTHING):
        return
    if isinstance(kind, list):
        wanted = "one of " + ", ".join(json.dumps(choice) for choice in kind)
        fits = any(type(value) is type(choice) and value == choice for choice in kind)
    else:
        types, wanted = KINDS[kind]
        fits = isinstance(value, types) and isinstance(value, bool) == (kind == "boolean")
    if not fits:
        raise UserError(f"{_shown(layer, path, value)}: must be {wanted}")


def replaced_fields(deepspeed: Layer) -> set[str]:
    """Fields of which our default gives way to a block of the JSON."""
    return {field for block, field in INSTEAD.items() if block in deepspeed.values}


def as_training_layer(deepspeed: Layer) -> Layer:
    """The numbers of the JSON as values of `training`, to be merged between our defaults and the recipe."""
    layer = Layer({"training": {}})
    for field, value, origin_path in _stated(deepspeed):
        if value is False and field == "fp16":
            continue  # `"fp16": {"enabled": false}` stands in many a bf16 set-up and chooses nothing
        layer.values["training"].setdefault(field, value)
        layer.origins.setdefault(("training", field), deepspeed.nearest_origin(origin_path))
    return layer


def _stated(deepspeed: Layer) -> Iterator[tuple[str, Any, KeyPath]]:
    """(field of TrainingArguments, value, path in the JSON) of each value that is given as such."""
    for key, field in SAME.items():
        path: KeyPath = tuple(int(part) if part.isdigit() else part for part in key.split("."))
        value = deepspeed.get(path)
        if value is not None and value != "auto":
            yield field, value, path


def compare_with_recipe(deepspeed: Layer, layer: Layer, training: Mapping[str, Any]) -> None:
    """Compare the JSON with the resolved recipe.

    layer: the recipe's, for origins. training: its values with HF's defaults filled in. Raises UserError for the
    first value that differs, a block that the recipe sets as well, or FSDP beside it.
    """
    if training.get("fsdp"):
        raise UserError(
            f"training.fsdp ({layer.origin(('training', 'fsdp'))}) and --deepspeed both shard the model: keep one"
        )
    for block, field in INSTEAD.items():
        if block in deepspeed.values and layer.get(("training", field)) is not None:
            raise UserError(
                f"{deepspeed.origin((block,))}: {block} is set here and as training.{field} = "
                f"{training[field]!r} ({layer.origin(('training', field))}): keep one"
            )
    for field, value, path in _stated(deepspeed):
        ours = training.get(field)
        if value != ours and not (value is False and not ours):
            raise UserError(
                f"{_shown(deepspeed, path, value)} disagrees with training.{field} = {json.dumps(ours)} "
                f'({layer.origin(("training", field))}): make them equal or write "auto" in the JSON'
            )


def check_deepspeed(deepspeed: Mapping[str, Any], config: Config, world_size: int, where: str = "DeepSpeed") -> None:
    """The one check that needs the number of ranks: train_batch_size = micro batch x accumulation x world_size.

    `load_config` runs it with the ranks its environment names. Raises UserError.
    """
    total = deepspeed.get("train_batch_size")
    micro, accumulation = config.argument("per_device_train_batch_size"), config.argument("gradient_accumulation_steps")
    if total in (None, "auto") or total == micro * accumulation * world_size:
        return
    raise UserError(
        f"{where}: train_batch_size = {json.dumps(total)} disagrees with training.per_device_train_batch_size x "
        f"gradient_accumulation_steps x ranks = {micro} x {accumulation} x {world_size}: "
        'make them equal or write "auto" in the JSON'
    )


def check_micro_batch(deepspeed: Layer, config: Config) -> None:
    """Raises UserError when the JSON states a number that `perf.micro_batch_size: auto` is to choose."""
    if config.perf.micro_batch_size != "auto":
        return
    for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        if (value := deepspeed.values.get(key)) not in (None, "auto"):
            raise UserError(
                f"{_shown(deepspeed, (key,), value)} fixes a size that perf.micro_batch_size: auto has to choose: "
                'write "auto" in the JSON'
            )


def _shown(deepspeed: Layer, path: KeyPath, value: Any) -> str:
    return f"{deepspeed.nearest_origin(path)}: {'.'.join(map(str, path))} = {json.dumps(value)}"
