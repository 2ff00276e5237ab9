"""Loads recipes: YAML files that extend each other, overridden by the command line; every value keeps its origin.

The sections are any pydantic models. So `data_prep` reads its two sections without importing `training`, and
`training.config` adds the others.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from data_prep.errors import UserError
from data_prep.options import DataSection, TokenizerSection
from data_prep.recipe.command_line import Grammar, apply
from data_prep.recipe.data_names import DATA_NAMES
from data_prep.recipe.layers import (
    MODEL_REPLACES,
    RECIPE_DIR,
    Replaces,
    either,
    find_file,
    load_recipe,
    merge,
    set_value,
)
from data_prep.recipe.sections import Refused, Sections, check_sections, dump_sections
from data_prep.recipe.spelling import did_you_mean
from data_prep.recipe.synonym import Names, Synonym, translate
from data_prep.recipe.yaml_file import COMMAND_LINE, DEFAULT, KeyPath, Layer, Origin, read_yaml, shown_path

__all__ = [
    "COMMAND_LINE",
    "DATA_NAMES",
    "DEFAULT",
    "MODEL_REPLACES",
    "RECIPE_DIR",
    "Grammar",
    "KeyPath",
    "Layer",
    "Names",
    "Origin",
    "Refused",
    "Replaces",
    "Sections",
    "Synonym",
    "UserError",
    "apply",
    "check_sections",
    "did_you_mean",
    "dump_sections",
    "either",
    "expand_home",
    "find_file",
    "load_data_recipe",
    "load_recipe",
    "merge",
    "read_yaml",
    "set_value",
    "shown_path",
    "translate",
    "with_tokenizer_of_model",
]

DATA_SECTIONS: Sections = {"tokenizer": TokenizerSection, "data": DataSection}


def load_data_recipe(argv: Sequence[str]) -> tuple[DataSection, TokenizerSection]:
    """Load `--config NAME_OR_PATH` with overrides of `data` and `tokenizer`; ignore other sections of the recipe.

    Raises UserError as `load_recipe`, `Grammar.parse` and `check_sections` do.
    """
    arguments = Grammar(DATA_SECTIONS, {"config": "config"}, DATA_NAMES).parse(argv)
    name = arguments.options.get("config")
    read = partial(translate, sections=DATA_SECTIONS, names=DATA_NAMES)
    layer = load_recipe(name, translate=read)[0] if name else Layer()
    layer = merge(layer, apply(layer, arguments, DATA_SECTIONS), MODEL_REPLACES)
    layer = expand_home(with_tokenizer_of_model(layer))
    layer.values = {name: values for name, values in layer.values.items() if name in DATA_SECTIONS}
    sections = check_sections(layer, DATA_SECTIONS)
    return sections["data"], sections["tokenizer"]


def expand_home(layer: Layer) -> Layer:
    """Expand `~` in the output directories. Raises UserError for an empty directory name."""
    for path in (("training", "output_dir"), ("data", "store_dir")):
        place = layer.get(path)
        if isinstance(place, str) and not place.strip():
            raise UserError(f"{layer.origin(path)}: {'.'.join(path)} = {place!r}: must name a directory")
        if isinstance(place, str) and place.startswith("~"):
            layer = set_value(layer, path, str(Path(place).expanduser()), layer.origin(path))
    return layer


def with_tokenizer_of_model(layer: Layer) -> Layer:
    """Set `tokenizer.path` to `model.path`, the tokenizer of a pretrained model, unless a layer sets the tokenizer."""
    path, tokenizer = layer.get(("model", "path")), layer.get(("tokenizer",)) or {}
    if path is None or "path" in tokenizer or "vocab_size" in tokenizer:
        return layer
    return set_value(layer, ("tokenizer", "path"), path, layer.origin(("model", "path")))
