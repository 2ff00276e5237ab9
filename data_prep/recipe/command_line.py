"""Parses the command line into overrides of a recipe.

The forms are `section.key=value` and `--section.key value`, and for a key that only one section has, `--key value` and
`--key=value`. `-` and `_` in keys are the same. A boolean flag needs no value. A value is read as in YAML, but a text
key gets it as typed. If a key is set twice, the later value counts.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import yaml

from data_prep.errors import UserError
from data_prep.recipe.sections import Refused, Sections, accepts, field_type
from data_prep.recipe.spelling import did_you_mean
from data_prep.recipe.synonym import Names, Synonym, assign, expand
from data_prep.recipe.yaml_file import COMMAND_LINE, KeyPath, Layer, parse_value

_OVERRIDE = re.compile(r"([A-Za-z][\w-]*(?:\.[\w-]+)+)=(.*)", re.DOTALL)


@dataclass
class Arguments:
    """The parsed command line: options of the command itself, and assignments to keys, in order."""

    options: dict[str, str] = field(default_factory=dict)
    assignments: list[tuple[KeyPath, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Grammar:
    """The arguments that a command accepts.

    options: flag -> name of an option of the command (several flags may share one).
    names: names of other programs that are also accepted or refused.
    refused: dotted key -> why it is refused.
    """

    sections: Sections
    options: Mapping[str, str]
    names: Names = field(default_factory=Names)
    refused: Refused = field(default_factory=dict)

    def parse(self, argv: Sequence[str]) -> Arguments:
        """Parse arguments.

        Raises UserError for an unknown or ambiguous key, a missing value, or an argument that is not an override.
        """
        for token in argv:
            if any("\ud800" <= character <= "\udfff" for character in token):  # Python's form of invalid bytes
                raise UserError(f"command line: {token!r} is not valid UTF-8")
        arguments, rest = Arguments(), list(argv)
        while rest:
            token = rest.pop(0)
            override = _OVERRIDE.fullmatch(token)
            if token.startswith("--") and len(token) > 2:
                name, equals, value = token[2:].partition("=")
                self._flag(arguments, _normal(name), value if equals else None, rest)
            elif override and self._without_section(_normal(override[1])) != _normal(override[1]):
                self._flag(arguments, _normal(override[1]), override[2], rest)
            elif override:
                path = self._path(_normal(override[1]), token)
                arguments.assignments.append((path, read_value(self.sections, path, override[2])))
            else:
                raise UserError(f"command line: unexpected {token!r}: write section.key=value or --key value")
        return arguments

    def _flag(self, arguments: Arguments, name: str, value: str | None, rest: list[str]) -> None:
        if name in self.options:
            arguments.options[self.options[name]] = _one(name, value, rest)
            return
        name = self._without_section(name)
        if name in self.names.refused:
            raise UserError(f"command line: --{name}: {self.names.refused[name]}")
        target = self.names.synonyms.get(name)
        if isinstance(target, Synonym):
            given = {"switch": _switch, "one": _one, "word": _word, "many": _many}[target.takes](name, value, rest)
            keys = expand(target, given, f"command line: --{name}")
            arguments.assignments += [(_split(key), item) for key, item in keys.items()]
            return
        targets = (target,) if isinstance(target, str) else target
        paths = [_split(key) for key in targets] if targets else [self._path(name, f"--{name}")]
        annotation = field_type(self.sections[str(paths[0][0])], paths[0][1:]) if paths[0][0] in self.sections else None
        if bool in (annotation, *get_args(annotation)):
            given = _switch(name, value, rest)
        else:
            given = read_value(self.sections, paths[0], _one(name, value, rest))
        arguments.assignments += [(path, given) for path in paths]

    def _without_section(self, name: str) -> str:
        """Remove the section of a foreign name (`training.lr` is `lr`), unless the section has a key of that name."""
        section, _, key = name.partition(".")
        foreign = key in self.names.synonyms or key in self.names.refused
        known = section in self.sections and key in self.sections[section].model_fields
        return key if section in self.sections and foreign and not known else name

    def _path(self, name: str, typed: str) -> KeyPath:
        if name in self.refused:
            raise UserError(f"command line: {typed}: {self.refused[name]}")
        if "." in name:
            if name.split(".")[0] not in self.sections:
                section = name.split(".")[0]
                raise UserError(
                    f"command line: {typed}: unknown section {section}{did_you_mean(section, self.sections)}"
                )
            return _split(name)
        owners = [section for section, model in self.sections.items() if name in model.model_fields]
        if len(owners) == 1:
            if f"{owners[0]}.{name}" in self.refused:
                raise UserError(f"command line: {typed}: {self.refused[f'{owners[0]}.{name}']}")
            return owners[0], name
        if owners:
            candidates = ", ".join(f"--{owner}.{name}" for owner in owners)
            raise UserError(f"command line: {typed} is ambiguous: write one of {candidates}")
        reasons = [reason for key, reason in self.refused.items() if key.split(".")[1:] == [name]]
        if reasons:
            raise UserError(f"command line: {typed}: {reasons[0]}")
        keys = {key for model in self.sections.values() for key in model.model_fields}
        known = {*keys, *self.names.synonyms, *self.options}
        if name.startswith("no_") and name[3:] in known:
            raise UserError(f"command line: unknown flag {typed}: write --{name[3:]} false")
        near = did_you_mean(name, known).replace("mean ", "mean --")
        raise UserError(f"command line: unknown flag {typed}{near or ': --help lists all keys'}")


def apply(layer: Layer, arguments: Arguments, sections: Sections) -> Layer:
    """Make a layer from the command line, to be merged over `layer`; `*` stands for the entries of its lists."""
    return assign(Layer(), layer, [(path, value, COMMAND_LINE) for path, value in arguments.assignments], sections)


def read_value(sections: Sections, path: KeyPath, text: str) -> Any:
    """Read a value as YAML if the key accepts the result, else return the text as typed."""
    try:
        value = parse_value(text)
    except (yaml.YAMLError, UserError):
        return text
    in_brackets = text.lstrip()[:1] in ("[", "{")
    if isinstance(value, str) or (isinstance(value, dict | list) and not in_brackets):
        return text
    if value is None and text.strip() not in ("null", "~"):
        return text
    annotation = field_type(sections[str(path[0])], path[1:]) if path[0] in sections else None
    known = len(path) == 2 and annotation is not None
    return text if known and not accepts(annotation, value) and accepts(annotation, text) else value


def _normal(name: str) -> str:
    return name.replace("-", "_")


def _split(name: str) -> KeyPath:
    return tuple(name.split("."))


def _is_value(token: str) -> bool:
    return not (token.startswith("--") and len(token) > 2) and not _OVERRIDE.fullmatch(token)


def _one(name: str, value: str | None, rest: list[str]) -> str:
    if value is not None:
        return value
    if not rest or (rest[0].startswith("--") and len(rest[0]) > 2):
        raise UserError(f"command line: --{name} needs a value")
    return rest.pop(0)


def _word(name: str, value: str | None, rest: list[str]) -> str:
    if value is None and rest and not rest[0].startswith("-") and not _OVERRIDE.fullmatch(rest[0]):
        value = rest.pop(0)
    return "true" if value is None else value.lower() if value in ("True", "False") else value


def _many(name: str, value: str | None, rest: list[str]) -> list[str]:
    values = [] if value is None else [value]
    while rest and _is_value(rest[0]):
        values.append(rest.pop(0))
    if not values:
        raise UserError(f"command line: --{name} needs at least one value")
    return values


def _switch(name: str, value: str | None, rest: list[str]) -> bool:
    if value is None and rest and rest[0].lower() in ("true", "false"):
        value = rest.pop(0)
    if value is None:
        return True
    if value.lower() not in ("true", "false"):
        raise UserError(f"command line: --{name} = {value!r}: must be true or false")
    return value.lower() == "true"
