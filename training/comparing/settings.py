"""What differs between the set-ups of two sides: config.yaml, the DeepSpeed JSON, the machine. By key, with origins.

config.yaml carries the origin of every value as a comment at the end of its line (`training.config.dump_resolved`);
it is parsed as YAML, and the comment is taken from the line that the parser names. The run's own place
(`training.output_dir`), its start time and its command line are no differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_prep.errors import UserError
from data_prep.recipe import KeyPath
from data_prep.recipe.yaml_file import parse_yaml
from training.comparing.sides import Side
from training.reporting.run_reader import Run

OWN_TO_A_RUN = ("training.output_dir", "training.run_name", "env.started", "env.command")
ABSENT = "-"


@dataclass(frozen=True)
class Setting:
    """A value as text and where it came from; `origin` is empty where the file does not say."""

    value: str
    origin: str = ""

    def __str__(self) -> str:
        return f"{self.value} ({self.origin})" if self.origin else self.value


@dataclass(frozen=True)
class Difference:
    """A setting whose value differs between two runs."""

    key: str
    a: Setting
    b: Setting


def load_settings(run: Run) -> dict[str, Setting]:
    """Every leaf by dotted key: the recipe's as they are, `ds_config.…` and `env.…` of the other two files."""
    settings = _read_config(run)
    for prefix, values in (("ds_config", run.ds_config or {}), ("env", run.env)):
        for path, value in _walk_leaves(values, (prefix,)):
            settings[_dotted(path)] = Setting(str(value))
    return {key: setting for key, setting in settings.items() if key not in OWN_TO_A_RUN}


def find_differences(a: Run, b: Run) -> list[Difference]:
    """Keys whose values differ, in the order of the files; an origin that differs alone is no difference."""
    settings_a, settings_b = load_settings(a), load_settings(b)
    absent = Setting(ABSENT)
    return [
        Difference(key, settings_a.get(key, absent), settings_b.get(key, absent))
        for key in dict.fromkeys([*settings_a, *settings_b])
        if settings_a.get(key, absent).value != settings_b.get(key, absent).value
    ]


def describe_mixture(side: Side) -> list[str]:
    """One sentence for each run of a side that is set up unlike the side's first, seeds apart."""
    sentences = []
    for run in side.runs[1:]:
        keys = [one.key for one in find_differences(side.runs[0], run) if not one.key.endswith("seed")]
        if keys:
            where = f"{run.path} differs from {side.runs[0].path} in"
            sentences.append(
                f"{side.name} mixes configurations: {where} {', '.join(keys[:5])}{', …' * (len(keys) > 5)}."
            )
    return sentences


def _read_config(run: Run) -> dict[str, Setting]:
    """Empty when the run has no config.yaml; one that is no YAML is an error that names the line."""
    if run.config_text is None:
        return {}
    lines = run.config_text.splitlines()
    layer = parse_yaml(run.config_text, str(run.path / "config.yaml"))
    if not isinstance(layer.values, dict):
        raise UserError(f"{run.path / 'config.yaml'}: not a mapping of sections")
    settings = {}
    for path, value in _walk_leaves(layer.values, ()):
        line = layer.nearest_origin(path).line
        settings[_dotted(path)] = Setting(str(value), _find_comment(lines[line - 1]) if line else "")
    return settings


def _find_comment(line: str) -> str:
    _, mark, comment = line.rpartition("  # ")
    return comment.strip() if mark else ""


def _walk_leaves(value: Any, path: KeyPath) -> list[tuple[KeyPath, Any]]:
    if isinstance(value, Mapping) and value:
        return [leaf for key, child in value.items() for leaf in _walk_leaves(child, (*path, key))]
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return [leaf for index, child in enumerate(value) for leaf in _walk_leaves(child, (*path, index))]
    return [(path, value)]


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))
