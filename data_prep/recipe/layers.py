"""Layers of a recipe: what it extends < the recipe itself < the command line.

Mappings merge key by key, anything else is replaced whole (a list too). A layer that sets one key of an exclusive
group (`max_steps` or `num_train_epochs`) removes the others from the layers below, so that the later word holds;
two of them in the same layer stay and are left to the caller to refuse.

Two keys are the loader's own: `extends: NAME | [NAMES]`, where later names win, and `alone:`, values that count only
when the file is the recipe that was asked for, not when another one extends it.
"""

import copy
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.recipe.yaml_file import KeyPath, Layer, Origin, read_yaml, shown_path, walk_paths

RECIPE_DIR = Path(__file__).resolve().parents[2] / "configs"
PREFIXES = ("", "minigpt_")  # `--config medium` is configs/minigpt_medium.yaml

ExclusiveGroups = Sequence[tuple[KeyPath, ...]]
_NOT_SET = (None, False, -1)  # a value of an exclusive key that claims nothing; -1 is how HF writes "no max_steps"


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


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`: did you mean X?`, or nothing when no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f": did you mean {near[0]}?" if near else ""


def load_recipe(name: str, exclusive: ExclusiveGroups = ()) -> tuple[Layer, Path]:
    """The merged layers of a recipe and its file.

    Raises UserError: no such file, unreadable, an `extends` that closes a circle.
    """
    file = find_file(name, [RECIPE_DIR], ".yaml", "recipe")
    return _load(file, (), exclusive), file


def _load(file: Path, chain: tuple[Path, ...], exclusive: ExclusiveGroups) -> Layer:
    own = read_yaml(file)
    alone = _pop_mapping(own, "alone")
    merged = Layer()
    for parent, origin in _parents(own, file):
        if parent.resolve() in (*(c.resolve() for c in chain), file.resolve()):
            circle = " -> ".join(shown_path(c) for c in (*chain, file, parent))
            raise UserError(f"{origin}: extends closes a circle: {circle}")
        merged = merge(merged, _load(parent, (*chain, file), exclusive), exclusive)
    merged = merge(merged, own, exclusive)
    return merged if chain else merge(merged, alone, exclusive)


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
            found = beside if beside.is_file() else find_file(name, [file.parent, RECIPE_DIR], ".yaml", "recipe")
        except UserError as error:
            raise UserError(f"{origin}: extends: {error}") from None
        parents.append((found, origin))
    return parents


def _pop_mapping(layer: Layer, key: str) -> Layer:
    values = layer.values.pop(key, None)
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{layer.origin((key,))}: {key} = {values!r}: must be sections with keys")
    return Layer(values or {}, {path[1:]: o for path, o in layer.origins.items() if path[0] == key and len(path) > 1})


def merge(lower: Layer, upper: Layer, exclusive: ExclusiveGroups = ()) -> Layer:
    """A new layer in which `upper` wins."""
    result = Layer(copy.deepcopy(lower.values), dict(lower.origins))
    for group in exclusive:
        claimed = {path for path in group if upper.get(path) not in _NOT_SET}
        for path in (p for p in group if claimed and p not in claimed):
            _remove(result, path)
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


def _remove(layer: Layer, path: KeyPath) -> None:
    *_, last = path
    parent = layer.get(path[:-1])
    if isinstance(parent, dict):
        parent.pop(last, None)
    for below in [p for p in layer.origins if p[: len(path)] == path]:
        del layer.origins[below]
