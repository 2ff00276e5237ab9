"""Layers -> typed sections, and back to YAML.

`check_sections` is strict (no `"3"` for 3, no 1 for true) and its first error is one line: origin, key, value, what
the key takes, and the nearest key that exists. `dump_sections` writes every leaf with its origin as a trailing
comment; what it writes loads again to the same values.
"""

import json
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from data_prep.errors import UserError
from data_prep.recipe.spelling import did_you_mean
from data_prep.recipe.yaml_file import KeyPath, Layer, parse_value

Sections = Mapping[str, type[BaseModel]]
Refused = Mapping[str, str]  # dotted key -> why it is not taken and what to use

MOST_LISTED = 20
"""A message lists the values of a key up to this number. Only `training.optim` has more: it refers to `CHOICES`."""
CHOICES = "docs/choices.md"


def dotted(path: KeyPath) -> str:
    """A key path as users write it: `a.b.0`."""
    return ".".join(map(str, path))


def check_sections(layer: Layer, sections: Sections, refused: Refused = types.MappingProxyType({})) -> dict[str, Any]:
    """The section models, defaults filled in, by name.

    Raises UserError for the first unknown section, refused or unknown key, or wrong value.
    """
    for name in layer.values:
        if name not in sections:
            raise UserError(f"{layer.origin((name,))}: unknown section {name}{_suggest((name,), sections)}")
    for path in list(layer.origins):
        if dotted(path) in refused and layer.get(path[:1]) is not None:
            raise UserError(f"{layer.origin(path)}: {dotted(path)}: {refused[dotted(path)]}")
    return {name: _check_section(layer, name, model, sections) for name, model in sections.items()}


def _check_section(layer: Layer, name: str, model: type[BaseModel], sections: Sections) -> BaseModel:
    values = layer.values.get(name)
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{layer.origin((name,))}: {name} = {values!r}: must be a section with keys")
    try:
        # As JSON, because strict mode takes a mapping for a nested section only there.
        return model.model_validate_json(json.dumps(values or {}), strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
        unknown = [detail for detail in details if detail["type"] == "extra_forbidden"]
        raise UserError(_message(layer, name, model, (unknown or details)[0], sections)) from None


def _message(layer: Layer, name: str, model: type[BaseModel], detail: ErrorDetails, sections: Sections) -> str:
    path: KeyPath = (name, *detail["loc"])
    where = layer.nearest_origin(path)
    if detail["type"] == "extra_forbidden":
        return f"{where}: unknown key {dotted(path)}{_suggest(path, sections)}"
    if detail["type"] == "value_error":  # a validator of ours: its text is the message
        return f"{where}: {dotted(path)}: {detail['msg'].removeprefix('Value error, ')}"
    annotation = field_type(model, detail["loc"])
    while len(path) > 1 and path not in layer.origins:  # loc ends in the branch of a union that was tried
        path = path[:-1]
    if detail["type"] == "missing":
        return f"{where}: {dotted((name, *detail['loc']))} is missing"
    takes = detail["msg"].replace("Input should be", "must be")
    if annotation is not None and (detail["type"].endswith(("_type", "_parsing")) or "literal" in detail["type"]):
        takes = f"must be {describe(annotation)}"
    value = layer.get(path)
    known = literals(annotation)
    near = did_you_mean(value, known) if isinstance(value, str) else ""
    if len(known) > MOST_LISTED:
        takes, near = "unknown", f"{near.replace(':', ';', 1) or ';'} {CHOICES} lists all"
    return f"{where}: {dotted(path)} = {shown_value(value)}: {takes}{near}"


def shown_value(value: Any) -> str:
    """As in YAML: true, null, 'text'."""
    return value.__repr__() if isinstance(value, str) else json.dumps(value, default=str)


def _suggest(path: KeyPath, sections: Sections) -> str:
    """Nearest key of the same section, else the section that has a key of this name, else the nearest of all."""
    key = str(path[-1])
    if len(path) == 1:
        return did_you_mean(key, sections)
    prefix = dotted(path[:-1])
    siblings = field_names(sections[str(path[0])], path[1:-1])
    owners = [name for name, model in sections.items() if key in model.model_fields and name != path[0]]
    if owners and len(path) == 2:
        return ": did you mean " + " or ".join(f"{owner}.{key}" for owner in owners) + "?"
    near = did_you_mean(key, siblings)
    if near:
        return near.replace("mean ", f"mean {prefix}.")
    if len(path) > 2 and siblings:  # a mapping within a section: few keys, and no other section has them
        return f": {prefix} takes {', '.join(siblings)}"
    return did_you_mean(key, [f"{name}.{k}" for name, model in sections.items() for k in model.model_fields])


def field_type(model: type[BaseModel], path: KeyPath) -> Any:
    """The annotation of the field at `path` below `model`; list indices and union branches are passed over."""
    annotation: Any = None
    current: type[BaseModel] | None = model
    for key in path:
        if current is None or key not in current.model_fields:
            continue
        annotation = current.model_fields[str(key)].annotation
        current = next(_models_in(annotation), None)
    return annotation


def field_names(model: type[BaseModel], path: KeyPath) -> list[str]:
    """Fields of the model at this path."""
    if not path:
        return list(model.model_fields)
    return [name for nested in _models_in(field_type(model, path)) for name in nested.model_fields]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def literals(annotation: Any) -> list[str]:
    """All texts that the annotation takes by name."""
    if get_origin(annotation) is Literal:
        return [argument for argument in get_args(annotation) if isinstance(argument, str)]
    return [text for argument in get_args(annotation) for text in literals(argument)]


def accepts(annotation: Any, value: Any) -> bool:
    """Whether strict validation takes `value`."""
    try:
        TypeAdapter(annotation).validate_json(json.dumps(value), strict=True)
    except ValidationError:
        return False
    return True


_SEVERAL = {int: "integers", float: "numbers", str: "text", bool: "true or false", dict: "mappings"}
_WORDS = {
    int: "an integer", float: "a number", str: "text (quote it)", bool: "true or false", dict: "a mapping",
    list: "a list", type(None): "null", Any: "anything",
}  # fmt: skip


def describe(annotation: Any) -> str:
    """An annotation in words: `an integer or null`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe(arguments[0])
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(argument) for argument in sorted(arguments, key=_place_in_union))
    if origin is list:
        return "a list of " + _describe_several(arguments[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a mapping with the keys {', '.join(annotation.model_fields)}"
    return _WORDS.get(origin or annotation, str(annotation))


def _place_in_union(annotation: Any) -> int:
    """Single values first, then lists, null last."""
    return 2 if annotation is types.NoneType else int(get_origin(annotation) is list)


def _describe_several(annotation: Any) -> str:
    """The items of a list in words: `integers`."""
    if get_origin(annotation) is Annotated:
        return _describe_several(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return f"any of {', '.join(map(str, get_args(annotation)))}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"mappings with the keys {', '.join(annotation.model_fields)}"
    return _SEVERAL.get(get_origin(annotation) or annotation) or describe(annotation)


def dump_sections(values: Mapping[str, Any], layer: Layer) -> str:
    """YAML of nested `values`, each leaf followed by `# origin`."""
    return "".join(f"{line}\n" for line in _dump_mapping(values, layer, (), ""))


def _dump_mapping(values: Mapping[str, Any], layer: Layer, path: KeyPath, indent: str) -> Iterator[str]:
    for key, value in values.items():
        here = (*path, key)
        if isinstance(value, dict) and value:
            yield f"{indent}{dump_scalar(key)}:"
            yield from _dump_mapping(value, layer, here, indent + "  ")
        elif isinstance(value, list) and any(isinstance(item, dict) and item for item in value):
            yield f"{indent}{dump_scalar(key)}:"
            yield from _dump_items(value, layer, here, indent)
        else:
            yield f"{indent}{dump_scalar(key)}: {_dump_leaf(value)}  # {layer.origin(here)}"


def _dump_items(items: list[Any], layer: Layer, path: KeyPath, indent: str) -> Iterator[str]:
    for index, item in enumerate(items):
        if isinstance(item, dict) and item:
            first, *rest = _dump_mapping(item, layer, (*path, index), indent + "  ")
            yield f"{indent}- {first.lstrip()}"
            yield from rest
        else:
            yield f"{indent}- {_dump_leaf(item)}  # {layer.origin((*path, index))}"


def _dump_leaf(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{dump_scalar(k)}: {_dump_leaf(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_dump_leaf(item) for item in value) + "]"
    return dump_scalar(value)


def dump_scalar(value: Any) -> str:
    """YAML text that `parse_value` reads back as `value`, safe inside flow and block style."""
    if not isinstance(value, str):
        return json.dumps(value) if not isinstance(value, float) else _dump_float(value)
    plain = value.replace("_", "").replace("-", "").replace("/", "").replace(".", "").isalnum() and value.isascii()
    if plain and value[0] not in "-." and parse_value(value) == value:
        return value
    return yaml.safe_dump(value, default_style='"', width=float("inf"), allow_unicode=True).rstrip("\n")


def _dump_float(value: float) -> str:
    return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(value), repr(value))
