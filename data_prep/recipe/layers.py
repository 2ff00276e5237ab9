"""Merges the layers of a recipe. Their order is, from low to high: what it extends, the recipe, the command line.

Mappings are merged key by key; any other value, also a list, is replaced as a whole. A layer that sets one key can
remove other keys from the layers below (`Replaces`), so that the later setting counts: `max_steps` removes
`num_train_epochs`, and `model.path` removes the shape of a model from scratch. If one layer has both keys, both stay,
and the caller refuses them.

The loader itself handles two keys. `extends: NAME | [NAMES]` lists lower layers; later names have priority. `alone:`
contains values that a profile sets if no other recipe defines a model. They have the lowest priority. They count if the
file is loaded by its name, and if it is extended, unless another name in the same `extends` sets a key of `model`.
"""

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.recipe.places import find_shipped, list_places
from data_prep.recipe.spelling import find_near
from data_prep.recipe.yaml_file import KeyPath, Layer, Origin, read_yaml, shown_path, walk_paths

RECIPE_DIR = find_shipped("configs")
PREFIXES = ("", "minigpt_")  # `--config medium` is configs/minigpt_medium.yaml

Replaces = Sequence[tuple[KeyPath, KeyPath]]  # a layer that sets the first key removes the second from lower layers
Translate = Callable[[Layer, str], Layer]
Loaded = tuple[Layer, Path]
_NOT_SET = (None, False, -1)  # values that do not set a key; HF uses -1 for "no max_steps"

# Pretrained weights define the shape and the tokenizer of a model, an architecture defines the shape.
MODEL_REPLACES: Replaces = (
    (("model", "path"), ("model", "kind")),
    (("model", "path"), ("model", "config")),
    (("model", "path"), ("tokenizer", "vocab_size")),
    (("model", "config", "model_type"), ("model", "kind")),
    (("model", "config", "model_type"), ("model", "config")),
)


def either(*keys: KeyPath) -> Replaces:
    """Make rules by which each of the keys removes the others, so that only one of them counts."""
    return tuple(itertools.permutations(keys, 2))


def find_file(name: str, directories: Iterable[Path], suffix: str, what: str) -> Path:
    """Find a file by its path, or by a bare name `NAME[suffix]` in one of the directories.

    Raises UserError that names the existing file with the most similar name.
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
    if near := find_near(name, there):
        others = ", ".join(other for other in there if other != near)
        raise UserError(
            f"{what} {name!r} does not exist; did you mean {near}?{f' (others: {others})' if others else ''}"
        )
    raise UserError(f"{what} {name!r} is neither a file nor one of: {', '.join(there)}")


def load_recipe(name: str, replaces: Replaces = MODEL_REPLACES, translate: Translate = lambda own, _: own) -> Loaded:
    """Load a recipe; return its merged layers and its file.

    translate: is called with the layer of each file and the file's name for messages.
    Raises UserError when a file is missing or unreadable, and for a cycle of `extends`.
    """
    file = find_file(name, list_places("configs"), ".yaml", "recipe")
    layer, alone = _load(file, (), replaces, translate)
    return merge(alone, layer, replaces), file


def _load(file: Path, chain: tuple[Path, ...], replaces: Replaces, translate: Translate) -> tuple[Layer, Layer]:
    """Load a file; return it merged with what it extends, and its `alone` layer."""
    own = read_yaml(file)
    alone = translate(_pop_mapping(own, "alone"), shown_path(file))
    parents = []
    for parent, origin in _parents(own, file):
        if parent.resolve() in (*(c.resolve() for c in chain), file.resolve()):
            cycle = " -> ".join(shown_path(c) for c in (*chain, file, parent))
            raise UserError(f"{origin}: extends forms a cycle: {cycle}")
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
        raise UserError(f"{layer.origin((key,))}: {key} = {values!r}: must be a mapping of sections")
    return Layer(values or {}, {path[1:]: o for path, o in layer.origins.items() if path[0] == key and len(path) > 1})


def merge(lower: Layer, upper: Layer, replaces: Replaces = ()) -> Layer:
    """Merge two layers into a new one; values of `upper` have priority."""
    result = Layer(copy.deepcopy(lower.values), dict(lower.origins))
    for setter, replaced in replaces:
        if upper.get(setter) not in (*_NOT_SET, lower.get(setter)):
            _remove(result, replaced)
    _merge_into(result, result.values, upper.values, (), upper)
    return result


def set_value(layer: Layer, path: KeyPath, value: Any, origin: Origin) -> Layer:
    """Return a new layer with one more value, which is merged as in `merge`."""
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
    """Return a new layer without the value at `path`."""
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
