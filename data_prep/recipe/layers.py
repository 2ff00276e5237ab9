"""Layers of a recipe: what it extends < the recipe itself < the command line.

Mappings merge key by key, anything else is replaced whole (a list too). A layer that sets one key may remove others
from the layers below (`Replaces`), so that the later word holds: `max_steps` removes `num_train_epochs`, a `model.path`
the shape of a model from scratch. Two such keys in the same layer stay and are left to the caller to refuse.

Two keys are the loader's own: `extends: NAME | [NAMES]`, where later names win, and `alone:`, what a profile brings
where no recipe beside it has a model. It lies below all other values, and counts when the file is asked for by its
name and when it is extended, unless another name in the same `extends` sets something of `model`.
"""

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.recipe.places import find_shipped, list_places
from data_prep.recipe.spelling import did_you_mean
from data_prep.recipe.yaml_file import KeyPath, Layer, Origin, read_yaml, shown_path, walk_paths

RECIPE_DIR = find_shipped("configs")
PREFIXES = ("", "minigpt_")  # `--config medium` is configs/minigpt_medium.yaml

Replaces = Sequence[tuple[KeyPath, KeyPath]]  # a layer that sets the first removes the second from those below
Translate = Callable[[Layer, str], Layer]
Loaded = tuple[Layer, Path]
_NOT_SET = (None, False, -1)  # a value that claims nothing; -1 is how HF writes "no max_steps"

# Weights bring their shape and their tokenizer, another architecture its own shape.
MODEL_REPLACES: Replaces = (
    (("model", "path"), ("model", "kind")),
    (("model", "path"), ("model", "config")),
    (("model", "path"), ("tokenizer", "vocab_size")),
    (("model", "config", "model_type"), ("model", "kind")),
    (("model", "config", "model_type"), ("model", "config")),
)


def either(*keys: KeyPath) -> Replaces:
    """Keys of which only one holds: each removes the others."""
    return tuple(itertools.permutations(keys, 2))


def find_file(name: str, directories: Iterable[Path], suffix: str, what: str) -> Path:
    """A path as written, or a bare name `NAME[suffix]` in one of the directories.

    Raises UserError that names the nearest file there is.
    """
    if Path(name).is_file():
        return Path(name)
    directories = list(directories)
    for directory in directories:
        for prefix in PREFIXES:
            for candidate in (directory / f"{prefix}{name}{suffix}", directory / f"{prefix}{name}"):
                if candidate.is_file():
                    return candidate
    there = sorted({file.name.removesuffix(suffix) for d in directories for file in d.glob(f"*{suffix}")})
    raise UserError(f"{what} {name!r} is neither a file nor one of: {', '.join(there)}{did_you_mean(name, there)}")


def load_recipe(name: str, replaces: Replaces = MODEL_REPLACES, translate: Translate = lambda own, _: own) -> Loaded:
    """The merged layers of a recipe and its file. translate: applied to the layer of each file, with the file as shown.

    Raises UserError: no such file, unreadable, an `extends` that closes a circle.
    """
    file = find_file(name, list_places("configs"), ".yaml", "recipe")
    layer, alone = _load(file, (), replaces, translate)
    return merge(alone, layer, replaces), file


def _load(file: Path, chain: tuple[Path, ...], replaces: Replaces, translate: Translate) -> tuple[Layer, Layer]:
    """A file merged with what it extends, and its `alone`."""
    own = read_yaml(file)
    alone = translate(_pop_mapping(own, "alone"), shown_path(file))
    parents = []
    for parent, origin in _parents(own, file):
        if parent.resolve() in (*(c.resolve() for c in chain), file.resolve()):
            circle = " -> ".join(shown_path(c) for c in (*chain, file, parent))
            raise UserError(f"{origin}: extends closes a circle: {circle}")
        parents.append(_load(parent, (*chain, file), replaces, translate))
    brings_model = [bool(layer.get(("model",))) for layer, _ in parents]
    below = [
        parent_alone
        for number, (_, parent_alone) in enumerate(parents)
        if not any(brings_model[:number] + brings_model[number + 1 :])
    ]
    merged = Layer()
    for layer in (*below, *(layer for layer, _ in parents), translate(own, shown_path(file))):
        merged = merge(merged, layer, replaces)
    return merged, alone


def _parents(own: Layer, file: Path) -> list[tuple[Path, Origin]]:
    origin = own.origin(("extends",))
    named = own.values.pop("extends", None)
    names = [named] if isinstance(named, str) else [] if named is None else named
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{origin}: extends = {named!r}: must be the name of a recipe or a list of names")
    parents = []
    for name in names:
        beside = file.parent / name
        try:
            places = [file.parent, *list_places("configs")]
            found = beside if beside.is_file() else find_file(name, places, ".yaml", "recipe")
        except UserError as error:
            raise UserError(f"{origin}: extends: {error}") from None
        parents.append((found, origin))
    return parents


def _pop_mapping(layer: Layer, key: str) -> Layer:
    values = layer.values.pop(key, None)
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{layer.origin((key,))}: {key} = {values!r}: must be sections with keys")
    return Layer(values or {}, {path[1:]: o for path, o in layer.origins.items() if path[0] == key and len(path) > 1})


def merge(lower: Layer, upper: Layer, replaces: Replaces = ()) -> Layer:
    """A new layer in which `upper` wins."""
    result = Layer(copy.deepcopy(lower.values), dict(lower.origins))
    for setter, replaced in replaces:
        if upper.get(setter) not in (*_NOT_SET, lower.get(setter)):
            _remove(result, replaced)
    _merge_into(result, result.values, upper.values, (), upper)
    return result


def set_value(layer: Layer, path: KeyPath, value: Any, origin: Origin) -> Layer:
    """A new layer with one more value, which replaces or merges as in `merge`."""
    for key in reversed(path):
        value = {key: value}
    return merge(layer, Layer.of(value, origin))


def _merge_into(result: Layer, into: dict[str, Any], values: dict[str, Any], path: KeyPath, upper: Layer) -> None:
    for key, value in values.items():
        here = (*path, key)
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            result.origins[here] = upper.origin(here)
            _merge_into(result, into[key], value, here, upper)
            continue
        if value is None and isinstance(into.get(key), dict) and not path:
            continue  # `training:` with every line commented out
        _remove(result, here)
        into[key] = copy.deepcopy(value)
        for below in [here, *walk_paths(value, here)]:
            result.origins[below] = upper.origin(below)


def remove_value(layer: Layer, path: KeyPath) -> Layer:
    """A new layer without the value at `path`."""
    result = Layer(copy.deepcopy(layer.values), dict(layer.origins))
    _remove(result, path)
    return result


def _remove(layer: Layer, path: KeyPath) -> None:
    *_, last = path
    parent = layer.get(path[:-1])
    if isinstance(parent, dict):
        parent.pop(last, None)
    for below in [p for p in layer.origins if p[: len(path)] == path]:
        del layer.origins[below]
