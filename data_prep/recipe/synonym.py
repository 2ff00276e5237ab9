"""Translates the names that other programs use (foreign names) to our keys, on the command line and in recipes.

`Names.synonyms` maps a foreign name to a dotted key, to several keys that get the same value, or to a `Synonym`, which
converts the value. `Names.refused` maps a name without a corresponding key to the reason and what to use instead.

In a recipe, a foreign name is accepted in any section, because users write it where the other program has it. A name
that is also a key of the section means that key, unless only the synonym accepts the value (`packing: true`).
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from data_prep.errors import UserError
from data_prep.recipe.layers import merge, remove_value, set_value
from data_prep.recipe.sections import Refused, Sections, accepts, dotted, shown_value
from data_prep.recipe.yaml_file import KeyPath, Layer, Origin, walk_paths


@dataclass(frozen=True)
class Synonym:
    """A name whose value must be converted for our keys.

    takes: the form of its value: `switch` true or false, `one` a text, `word` a text that may be missing (then "true"),
        `many` a list of texts.
    expand: converts the value to dotted keys with values. `list.*.key` stands for a key of every entry of a list,
        `list.+` for a new entry. Raises ValueError, with what it accepts, for any other value.
    """

    takes: Literal["switch", "one", "word", "many"]
    expand: Callable[[Any], Mapping[str, Any]]


Target = str | tuple[str, ...] | Synonym


@dataclass(frozen=True)
class Names:
    """Foreign names that are translated, and those that are refused."""

    synonyms: Mapping[str, Target] = field(default_factory=dict)
    refused: Refused = field(default_factory=dict)


def expand(target: Target, value: Any, where: str) -> dict[str, Any]:
    """Convert `where = value` to dotted keys with values. Raises UserError for a value that is not accepted."""
    if isinstance(target, str):
        return {target: value}
    if isinstance(target, tuple):
        return dict.fromkeys(target, value)
    try:
        return dict(target.expand(_convert(target, value)))
    except ValueError as error:
        shown = value[0] if isinstance(value, list) and len(value) == 1 else value
        raise UserError(f"{where} = {shown_value(shown)}: {error}") from None


def _convert(synonym: Synonym, value: Any) -> Any:
    if synonym.takes == "many":
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, dict | list) for item in items):
            raise ValueError("write entries with keys as in docs/data.md: data.sources: [{path: NAME}]")
        return [str(item) for item in value] if isinstance(value, list) else [str(value)]
    if isinstance(value, list | dict) or value is None:
        raise ValueError("must be a single value")
    if synonym.takes != "switch":
        return str(value).lower() if isinstance(value, bool) else str(value)
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def translate(layer: Layer, shown: str, sections: Sections, names: Names) -> Layer:
    """Replace the foreign names in the layer of a file by our keys; origins stay.

    shown: the file's name for messages.
    Raises UserError for a file with keys at the top level, a refused name, a value that is not accepted, and two names
    for one key.
    """
    if {"zero_optimization", "train_micro_batch_size_per_gpu", "fp16", "bf16"} & layer.values.keys():
        raise UserError(f"{shown}: this is a DeepSpeed JSON, not a recipe: pass it with --deepspeed")
    refuse_flat(layer, sections, names, shown)
    for name in sections.keys() & layer.values.keys():
        if not isinstance(layer.values[name], dict | None):
            shown_section = f"{name} = {shown_value(layer.values[name])}"
            raise UserError(f"{layer.origin((name,))}: {shown_section}: must be a section with keys")
    result = merge(Layer(), layer)
    found = [
        ((section, key), value)
        for section, values in layer.values.items()
        for key, value in (values.items() if isinstance(values, dict) else ())
        if _is_foreign(sections, (section, key), value, names)
    ]
    given: list[tuple[KeyPath, Any, Origin]] = []
    for path, value in found:
        origin = layer.origin(path)
        where = f"{origin}: {dotted(path)}"
        if path[1] not in names.synonyms:
            raise UserError(f"{where}: {names.refused[path[1]]}")
        result = remove_value(result, path)
        for target, item in expand(names.synonyms[path[1]], value, where).items():
            if layer.get(tuple(target.split("."))) is not None and target != dotted(path):
                raise UserError(f"{where} and {target} are both set, but mean the same: keep one")
            given.append((tuple(target.split(".")), item, origin))
    return assign(result, Layer(), given, sections)


def _is_foreign(sections: Sections, path: tuple[str, str], value: Any, names: Names) -> bool:
    section, key = path
    if section not in sections:  # the keys of sections that this program does not read are unknown
        return key in names.synonyms
    info = sections[section].model_fields.get(key)
    if info is None:
        return key in names.synonyms or key in names.refused
    return isinstance(names.synonyms.get(key), Synonym) and not accepts(info.annotation, value)


def assign(result: Layer, below: Layer, given: Sequence[tuple[KeyPath, Any, Origin]], sections: Sections) -> Layer:
    """Set values in `result` in order, those of list entries last; lists that only `below` has are copied from it."""
    for path, value, origin in sorted(given, key=lambda item: ("+" in item[0]) + 2 * ("*" in item[0])):
        if {"+", "*"} & set(path):
            result = _set_in_entries(result, below, (path, value, origin), sections)
        else:
            result = set_value(result, path, value, origin)
    return result


def _set_in_entries(result: Layer, below: Layer, given: tuple[KeyPath, Any, Origin], sections: Sections) -> Layer:
    """Set `list.*.key` in every entry of a list, or append an entry for `list.+`; existing values keep their origin."""
    path, value, origin = given
    star = next(place for place, key in enumerate(path) if key in ("*", "+"))
    owner = next((layer for layer in (result, below) if layer.get(path[:star]) is not None), Layer())
    entries = copy.deepcopy(owner.get(path[:star])) or _default(sections, path[:star])
    if path[star] == "+":
        entries.append(value)
    else:
        for entry in entries:
            entry[path[-1]] = value
    changed = set_value(result, path[:star], entries, origin)
    for here in walk_paths(entries, path[:star]):
        is_new = here[star] == len(entries) - 1 if path[star] == "+" else here[-1] == path[-1]
        changed.origins[here] = origin if is_new else owner.origin(here)
    return changed


def _default(sections: Sections, path: KeyPath) -> list[Any]:
    model: BaseModel = sections[str(path[0])].model_validate({})
    return model.model_dump(mode="json")[str(path[1])]


def refuse_flat(layer: Layer, sections: Sections, names: Names, shown: str) -> None:
    """Raises UserError for a file with keys at the top level, as other programs write them.

    The message names the program and the place of each key.
    """
    flat = {key: value for key, value in layer.values.items() if _stands_alone(key, value, sections)}
    owners = {key: [f"{name}.{key}" for name, model in sections.items() if key in model.model_fields] for key in flat}
    known = [key for key in flat if key in names.synonyms or key in names.refused or owners[key]]
    if not known:
        return
    places = [_describe_place(key, flat[key], owners[key], names) for key in known]
    unknown = [key for key in flat if key not in known]
    rest = f"; unknown here: {', '.join(unknown)}" if unknown else ""
    raise UserError(
        f"{shown}: {name_program(flat)}: keys at the top level, which belong in sections: {'; '.join(places)}{rest}"
    )


def _stands_alone(key: str, value: Any, sections: Sections) -> bool:
    if key in sections:
        return not (value is None or isinstance(value, dict))
    return key not in ("extends", "alone", "deepspeed") and not isinstance(value, dict)


def name_program(keys: Mapping[str, Any]) -> str:
    """Name the program that a flat file belongs to, by keys that only this program has."""
    marks = {
        "a file of axolotl": {"base_model", "sequence_len", "sample_packing", "micro_batch_size", "val_set_size"},
        "a file of LLaMA-Factory": {"finetuning_type", "cutoff_len", "stage", "lora_target", "dataset_dir"},
        "a file of Hugging Face or TRL arguments": {"model_name_or_path", "per_device_train_batch_size", "output_dir"},
    }
    counts = {program: len(own & keys.keys()) for program, own in marks.items()}
    best = max(counts, key=lambda program: counts[program])
    return f"this is {best}" if counts[best] else "this is a flat file"


def _describe_place(key: str, value: Any, owners: list[str], names: Names) -> str:
    target = names.synonyms.get(key)
    if isinstance(target, Synonym):
        try:
            target = tuple(f"{name}: {shown_value(given)}" for name, given in expand(target, value, key).items())
        except UserError as error:
            return str(error)
    if target is not None:
        return f"{key} -> {target if isinstance(target, str) else ' and '.join(target)}"
    if key in names.refused:
        return f"{key}: {names.refused[key]}"
    return f"{key} -> {' or '.join(owners)}"
