"""Names that other programs have for keys of ours: one table for the command line and for the keys of a recipe.

`Names.synonyms` maps a foreign name to a dotted key, to several of them that get the one value, or to a `Synonym`,
whose value has another form. `Names.refused` maps a name that has no key here to the reason and what to use instead.

In a recipe a foreign name counts in any section, since people put it where their other program has it; a key that the
section has itself counts as that, unless it does not take the value and a synonym of that name does (`packing: true`).
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
    """A name whose value has another form than that of the keys it stands for.

    takes: `switch` true or false, `one` text, `word` text that may be left out (then "true"), `many` a list of texts.
    `expand` gets that and returns dotted keys with values: the part `*` of `list.*.key` stands for every entry of the
    list, `list.+` for one more. It raises ValueError, with what it takes, for a value that it does not take.
    """

    takes: Literal["switch", "one", "word", "many"]
    expand: Callable[[Any], Mapping[str, Any]]


Target = str | tuple[str, ...] | Synonym


@dataclass(frozen=True)
class Names:
    """Foreign names by what becomes of them."""

    synonyms: Mapping[str, Target] = field(default_factory=dict)
    refused: Refused = field(default_factory=dict)


def expand(target: Target, value: Any, where: str) -> dict[str, Any]:
    """Dotted keys and values for `where = value`. Raises UserError when the synonym does not take the value."""
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
            raise ValueError("entries with keys are written as docs/data.md has them: data.sources: [{path: NAME}]")
        return [str(item) for item in value] if isinstance(value, list) else [str(value)]
    if isinstance(value, list | dict) or value is None:
        raise ValueError("must be a single value")
    if synonym.takes != "switch":
        return str(value).lower() if isinstance(value, bool) else str(value)
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def translate(layer: Layer, shown: str, sections: Sections, names: Names) -> Layer:
    """The layer of a file with foreign names replaced by the keys that they stand for; origins stay.

    Raises UserError: a file with all keys at the top level, a refused name, a value that is not taken, two names for
    one key.
    """
    if {"zero_optimization", "train_micro_batch_size_per_gpu", "fp16", "bf16"} & layer.values.keys():
        raise UserError(f"{shown}: this is a DeepSpeed JSON, no recipe: name it with --deepspeed")
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
                raise UserError(f"{where} and {target} are both set and mean one thing: keep one")
            given.append((tuple(target.split(".")), item, origin))
    return assign(result, Layer(), given, sections)


def _is_foreign(sections: Sections, path: tuple[str, str], value: Any, names: Names) -> bool:
    section, key = path
    if section not in sections:  # of a program that reads other sections: what it has is not known
        return key in names.synonyms
    info = sections[section].model_fields.get(key)
    if info is None:
        return key in names.synonyms or key in names.refused
    return isinstance(names.synonyms.get(key), Synonym) and not accepts(info.annotation, value)


def assign(result: Layer, below: Layer, given: Sequence[tuple[KeyPath, Any, Origin]], sections: Sections) -> Layer:
    """`result` with the values given, in order, those for entries of a list last; `below` has lists they may change."""
    for path, value, origin in sorted(given, key=lambda item: ("+" in item[0]) + 2 * ("*" in item[0])):
        if {"+", "*"} & set(path):
            result = _set_in_entries(result, below, (path, value, origin), sections)
        else:
            result = set_value(result, path, value, origin)
    return result


def _set_in_entries(result: Layer, below: Layer, given: tuple[KeyPath, Any, Origin], sections: Sections) -> Layer:
    """Set `list.*.key` in every entry of the list as it stands, or append an entry at `list.+`; what was there keeps
    its origin."""
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
    """Raises UserError for a file whose keys stand at its top level, as other programs have them: one line that names
    the program and says where each key belongs."""
    flat = {key: value for key, value in layer.values.items() if _stands_alone(key, value, sections)}
    owners = {key: [f"{name}.{key}" for name, model in sections.items() if key in model.model_fields] for key in flat}
    known = [key for key in flat if key in names.synonyms or key in names.refused or owners[key]]
    if not known:
        return
    told = [_tell(key, flat[key], owners[key], names) for key in known]
    unknown = [key for key in flat if key not in known]
    rest = f"; nothing here is called {', '.join(unknown)}" if unknown else ""
    raise UserError(
        f"{shown}: {name_program(flat)}: keys at the top level, which a recipe has in sections: {'; '.join(told)}{rest}"
    )


def _stands_alone(key: str, value: Any, sections: Sections) -> bool:
    if key in sections:
        return not (value is None or isinstance(value, dict))
    return key not in ("extends", "alone", "deepspeed") and not isinstance(value, dict)


def name_program(keys: Mapping[str, Any]) -> str:
    """Whose flat file this is, by keys that only it has."""
    marks = {
        "a file of axolotl": {"base_model", "sequence_len", "sample_packing", "micro_batch_size", "val_set_size"},
        "a file of LLaMA-Factory": {"finetuning_type", "cutoff_len", "stage", "lora_target", "dataset_dir"},
        "a file of Hugging Face or TRL arguments": {"model_name_or_path", "per_device_train_batch_size", "output_dir"},
    }
    counts = {program: len(own & keys.keys()) for program, own in marks.items()}
    best = max(counts, key=lambda program: counts[program])
    return f"this is {best}" if counts[best] else "this is a flat file"


def _tell(key: str, value: Any, owners: list[str], names: Names) -> str:
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
