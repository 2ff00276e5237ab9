"""argv -> `LoadedConfig`, without importing torch.

Layers, later wins: defaults < values stated in the DeepSpeed JSON < recipe (with what it extends) < command line.
Order of checks, each on the whole: syntax, unknown keys, types, contradictions, the JSON against the recipe.
"""

import copy
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.options import DataSection, TokenizerSection
from data_prep.recipe import (
    COMMAND_LINE,
    DEFAULT,
    Grammar,
    KeyPath,
    Layer,
    Origin,
    Sections,
    apply,
    check_sections,
    dump_sections,
    expand_home,
    load_recipe,
    merge,
    translate,
    with_tokenizer_of_model,
)
from training.activations.modes import FULL
from training.config.contradictions import REPLACES, check_contradictions
from training.config.deepspeed_blocks import describe_filled, fill_in
from training.config.deepspeed_json import (
    DEEPSPEED_DIR,
    as_training_layer,
    check_deepspeed,
    check_micro_batch,
    compare_with_recipe,
    key_table,
    read_deepspeed,
    replaced_fields,
)
from training.config.field_texts import DEFAULTS_HERE
from training.config.optimizers import check_optimizer
from training.config.sections import (
    CHECKPOINTING,
    AdapterSection,
    CheckpointSection,
    Config,
    MiniGPTFields,
    ModelSection,
    MonitorSection,
    PerfSection,
)
from training.config.skipped_zero import describe_skipping
from training.config.synonyms import NAMES
from training.config.training_fields import DEFAULTS, hf_defaults, refused, training_section
from training.config.usage import TRAIN, Command, usage

OPTIONS = {
    "config": "config", "deepspeed": "deepspeed", "deepspeed_config": "deepspeed", "resume": "resume",
    "local_rank": "local_rank", "resume_from_checkpoint": "resume", "ds_config": "deepspeed",
}  # fmt: skip


@dataclass(frozen=True)
class LoadedConfig:
    """A checked recipe and where it came from.

    deepspeed: the JSON with what it leaves out filled in, `"auto"` still in it; None also where a single rank does
    without it (`skipped_zero.py`). resume: "auto", "never" or a
    checkpoint directory.
    recipe: name of the recipe file, "default" for the empty recipe; the run directory is runs/NAME by default.
    notes: lines on what was filled in, to be said once there is a log.
    """

    config: Config
    origins: Mapping[KeyPath, Origin]
    deepspeed: dict[str, Any] | None
    deepspeed_path: Path | None
    resume: str
    recipe: str
    notes: tuple[str, ...] = ()

    def located(self, message: str) -> str:
        """`message` with the file and line, or "command line", of the key that it begins with in front."""
        key = re.match(r"[a-z_]+(?:\.\w+)+", message)
        path: KeyPath = tuple(int(part) if part.isdigit() else part for part in key.group().split(".")) if key else ()
        for length in range(len(path), 1, -1):  # a whole section is no place
            origin = self.origins.get(path[:length])
            if origin is not None:
                return message if origin == DEFAULT else f"{origin}: {message}"
        return message


def sections() -> Sections:
    """Section models by name, in the order in which a recipe lists them."""
    return {
        "model": ModelSection, "adapter": AdapterSection, "tokenizer": TokenizerSection, "data": DataSection,
        "training": training_section(), "perf": PerfSection, "monitor": MonitorSection, "checkpoint": CheckpointSection,
    }  # fmt: skip


def load_config(argv: Sequence[str], world_size: int | None = None, command: Command = TRAIN) -> LoadedConfig:
    """Load and check the recipe that the command line names.

    world_size: number of ranks, the launcher's (WORLD_SIZE) by default. command: whose `--help` to print. Raises
    UserError with one line on what to fix; SystemExit(0) after printing `--help`.
    """
    known = sections()
    if "--help" in argv or "-h" in argv:
        defaults = {f"training.{name}": value for name, value in {**hf_defaults(), **DEFAULTS, **DEFAULTS_HERE}.items()}
        print(usage(command, known, NAMES.synonyms, defaults))
        raise SystemExit(0)
    arguments = Grammar(known, OPTIONS, NAMES, refused()).parse(argv)
    options = arguments.options

    recipe, name = Layer(), "default"
    if "config" in options:
        recipe, file = load_recipe(options["config"], REPLACES, partial(translate, sections=known, names=NAMES))
        name = file.stem
    json_name, json_origin = _pop_deepspeed(recipe, options.get("deepspeed"))
    deepspeed, path = read_deepspeed(json_name) if json_name else (None, None)

    layer = merge(_defaults(name, deepspeed), recipe, REPLACES)
    layer = merge(layer, apply(layer, arguments, known), REPLACES)
    layer = expand_home(with_tokenizer_of_model(layer))
    config = _build(layer, known)
    check_contradictions(config, layer)
    ranks = world_size or int(os.environ.get("WORLD_SIZE", "1"))
    if deepspeed:
        compare_with_recipe(deepspeed, layer, config.arguments())
        check_micro_batch(deepspeed, config)
        check_deepspeed(deepspeed.values, config, ranks, str(deepspeed.origin(("train_batch_size",))))
        layer.origins[("deepspeed",)] = json_origin
    check_optimizer(config, layer, deepspeed.values if deepspeed else None)
    if any(config.training.get(name) for name in CHECKPOINTING):
        config = config.with_checkpointing(FULL.name)
    values, notes, resume = None, (), _resume(options.get("resume"))
    if deepspeed:
        values = fill_in(deepspeed.values, config.arguments(), key_table()["params"])
        is_skipped, note = describe_skipping(values, config, ranks, resume)
        notes = tuple(filter(None, [describe_filled(deepspeed.values, values, config.arguments()), note]))
        values, path = (None, None) if is_skipped else (values, path)
    return LoadedConfig(config, layer.origins, values, path, resume, name, notes)


def _defaults(name: str, deepspeed: Layer | None) -> Layer:
    """Ours, with what the DeepSpeed JSON states over them."""
    values = {"output_dir": f"runs/{name}", **DEFAULTS}
    if deepspeed is None:
        return Layer.of({"training": values}, DEFAULT)
    for field in replaced_fields(deepspeed):
        values.pop(field, None)
    return merge(Layer.of({"training": values}, DEFAULT), as_training_layer(deepspeed), REPLACES)


def _pop_deepspeed(recipe: Layer, flag: str | None) -> tuple[str | None, Origin]:
    """`--deepspeed`, else the recipe's own; `none` on the command line switches the recipe's off."""
    named, origin = recipe.values.pop("deepspeed", None), recipe.origin(("deepspeed",))
    if named is not None and not isinstance(named, str):
        raise UserError(
            f"{origin}: deepspeed = {named!r}: must be the name or path of a DeepSpeed JSON (ds_configs/ has some)"
        )
    return (None if flag == "none" else flag, COMMAND_LINE) if flag else (named, origin)


def _resume(text: str | None) -> str:
    text = {"true": "auto", "false": "never"}.get((text or "never").lower(), text or "never")
    if text in ("auto", "never"):
        return text
    if not Path(text).is_dir():
        raise UserError(
            f"command line: --resume = {text!r}: no such directory: give auto, never or the path of a checkpoint"
        )
    return text


def _build(layer: Layer, known: Sections) -> Config:
    checked = check_sections(layer, known, refused())
    written = layer.values["training"]
    in_order = {name: copy.deepcopy(written[name]) for name in known["training"].model_fields if name in written}
    config = Config(**{**checked, "training": in_order})
    return config.model_copy(update={"model": _with_kind(config.model, layer)})


def _with_kind(model: ModelSection, layer: Layer) -> ModelSection:
    """MiniGPT unless the recipe names another model; its `config` is checked like a section."""
    if model.path or model.config.get("model_type", "minigpt") != "minigpt":
        return model
    fields = {key: value for key, value in model.config.items() if key != "model_type"}
    origins = {path[1:]: origin for path, origin in layer.origins.items() if path[:2] == ("model", "config")}
    nested = Layer({"config": fields}, origins)
    try:
        check_sections(nested, {"config": MiniGPTFields})
    except UserError as error:
        hint = "" if model.kind else " (to use another architecture, set model.config.model_type)"
        raise UserError(str(error).replace(" config.", " model.config.") + hint) from None
    return model.model_copy(update={"kind": "minigpt", "config": fields})


def dump_resolved(loaded: LoadedConfig) -> str:
    """`config.yaml` of a run: every value with its origin as a comment; loads again as a recipe.

    `training` lists what the recipe, the JSON or our defaults set; other fields are TrainingArguments' own defaults.
    """
    path = loaded.deepspeed_path
    shipped = path is not None and path.parent == DEEPSPEED_DIR  # by name: holds on every machine
    values: dict[str, Any] = {"deepspeed": path.stem if shipped else str(path)} if path else {}
    values |= loaded.config.model_dump(mode="json")
    return "# Resolved recipe. The comment of each value names its origin.\n" + dump_sections(
        values, Layer(values, dict(loaded.origins))
    )
