"""Reads YAML and records the line of each value.

Duplicate keys, merge keys and keys that are not text are errors. Scalars follow YAML 1.2: `1e-5` is a number, `no` and
`on` are text (the strategies of `TrainingArguments` have a value `no`), and only `true` and `false` are booleans. Dates
are text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data_prep.errors import UserError

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Origin:
    """Where a value was set."""

    source: str  # "default", "command line", or a file as the user would type it
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


DEFAULT = Origin("default")
COMMAND_LINE = Origin("command line")
MOST_VALUES = 20_000  # in a file; nested aliases can turn a few lines into billions of values


@dataclass
class Layer:
    """Nested values and the origin of every node by key path; a file and a command line each become a layer."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, Origin] = field(default_factory=dict)

    def origin(self, path: KeyPath) -> Origin:
        """Return the origin of the value at `path`; DEFAULT if no layer sets it."""
        return self.origins.get(path, DEFAULT)

    def nearest_origin(self, path: KeyPath) -> Origin:
        """Return the origin of the value at `path`, else of the innermost value around it, for messages."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return DEFAULT

    def get(self, path: KeyPath) -> Any:
        """Return the value at `path`; None if there is none."""
        node: Any = self.values
        for key in path:
            if isinstance(node, dict):
                node = node.get(key)
            elif isinstance(node, list) and isinstance(key, int) and key < len(node):
                node = node[key]
            else:
                return None
        return node

    @classmethod
    def of(cls, values: dict[str, Any], origin: Origin) -> "Layer":
        """Make a layer in which every node has the same origin."""
        return cls(values, {path: origin for path in walk_paths(values)})


def walk_paths(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Yield the key paths of all nodes below `value`, parents first."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield (*path, key)
        yield from walk_paths(child, (*path, key))


class _Loader(yaml.SafeLoader):
    """A SafeLoader with the scalars of YAML 1.2 instead of 1.1."""


_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)
_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$"), "-+0123456789")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, "-+0123456789.")


def read_yaml(file: Path) -> Layer:
    """Read a recipe; an empty file is an empty layer.

    Raises UserError with file and line when it is unreadable, not YAML or not a mapping, or has a duplicate key.
    """
    shown = shown_path(file)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"is not UTF-8 text ({error})"
        raise UserError(f"{shown}: cannot be read: {reason}") from None
    return parse_yaml(text, shown)


def parse_yaml(text: str, shown: str) -> Layer:
    """Parse YAML text as `read_yaml` does; `shown` names it in messages and origins."""
    node, construct = _compose(text, shown)
    layer = Layer()
    if node is None or (isinstance(node, yaml.ScalarNode) and node.value == ""):
        return layer
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{shown}:{node.start_mark.line + 1}: expected `key: value` lines at the top level")
    try:
        layer.values = _Reader(shown, construct, layer.origins).value(node, ())
    except RecursionError:
        raise UserError(f"{shown}: an anchor contains itself, or values are nested too deeply") from None
    return layer


def parse_value(text: str) -> Any:
    """Read one value as after `key: ` in a recipe. Raises yaml.YAMLError."""
    node, construct = _compose(text, None)
    return None if node is None else _Reader("value", construct, {}).value(node, ())


def shown_path(file: Path) -> str:
    """Return a path for messages: relative if it is below the working directory."""
    file = file.resolve()
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


def _compose(text: str, shown: str | None) -> tuple[yaml.Node | None, Any]:
    try:
        loader = _Loader(text)
        return loader.get_single_node(), loader.construct_object
    except yaml.YAMLError as error:
        if shown is None:
            raise
        mark = getattr(error, "problem_mark", None)
        where = shown if mark is None else f"{shown}:{mark.line + 1}"
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{where}: not valid YAML: {problem}") from None
    except RecursionError:
        raise UserError(f"{shown or 'value'}: values are nested too deeply") from None


@dataclass
class _Reader:
    shown: str
    construct: Any
    origins: dict[KeyPath, Origin]

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        if len(self.origins) > MOST_VALUES:
            raise UserError(f"{self.shown}: contains more than {MOST_VALUES:,} values: is it a recipe?")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            values = []
            for index, child in enumerate(node.value):
                self.origins[(*path, index)] = self._origin(child)
                values.append(self.value(child, (*path, index)))
            return values
        try:
            value = self.construct(node)
            if isinstance(value, bytes):
                raise ValueError("is binary")
            return value
        except (yaml.YAMLError, ValueError) as error:
            problem = getattr(error, "problem", None) or error
            raise UserError(f"{self._origin(node)}: cannot read {node.value!r}: {problem}") from None

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, child in node.value:
            origin = self._origin(key_node)
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None or not key:
                raise UserError(f"{origin}: a key must be text")
            dotted = ".".join(map(str, (*path, key)))
            if key == "<<":
                raise UserError(f"{origin}: merge keys (`<<`) are not supported: use `extends: other_recipe`")
            if key in lines:
                raise UserError(f"{origin}: duplicate key {dotted}: first written in line {lines[key]}")
            lines[key] = origin.line or 0
            self.origins[(*path, key)] = origin
            values[key] = self.value(child, (*path, key))
        return values

    def _origin(self, node: yaml.Node) -> Origin:
        return Origin(self.shown, node.start_mark.line + 1)
