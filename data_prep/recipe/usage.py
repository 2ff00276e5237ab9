"""Text of `--help`: the options of a command, and every key of a recipe's sections, wrapped to the terminal."""

import shutil
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from data_prep.recipe.sections import Sections, describe, shown_value

WIDEST = 110
"""Columns of `--help` on a wide terminal: longer lines are hard to read."""
NARROWEST = 40
OPTION_COLUMNS = 16


def find_width() -> int:
    """Columns of `--help`: the terminal's, from `NARROWEST` to `WIDEST`; 80 where they are unknown."""
    return max(NARROWEST, min(shutil.get_terminal_size(fallback=(80, 24)).columns, WIDEST))


def wrap_text(text: str, indent: str = "", first: str | None = None) -> str:
    """`text` in lines of the terminal's width. first: what the first line begins with, `indent` by default."""
    return textwrap.fill(
        text,
        find_width(),
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def format_call(program: str, arguments: Iterable[str]) -> str:
    """The line `usage: PROGRAM ARGUMENT ...`; an argument is kept on one line."""
    whole = " ".join(argument.replace(" ", "\xa0") for argument in arguments)
    return wrap_text(f"{program} {whole}", " " * 7, "usage: ").replace("\xa0", " ")


def describe_options(options: Mapping[str, str]) -> str:
    """One entry for each option: its name, and its description in a column of its own."""
    indent = " " * OPTION_COLUMNS
    lines = [wrap_text(text, indent, f"  {name}".ljust(OPTION_COLUMNS - 1) + " ") for name, text in options.items()]
    return "\n".join(lines) + "\n"


def describe_sections(sections: Sections, defaults: Mapping[str, Any] | None = None) -> str:
    """Every key: its type, its default and its description.

    defaults: by dotted key, of the fields that have none of their own.
    """
    lines = []
    for name, model in sections.items():
        lines.append(f"\n{name}:")
        for key, info in model.model_fields.items():
            usual = info.get_default(call_default_factory=True, validated_data={})
            usual = usual if usual is not None or defaults is None else defaults.get(f"{name}.{key}")
            default = "" if isinstance(usual, list | dict) else f" (default {shown_value(usual)})"
            takes = describe(info.annotation).replace(" (quote it)", "")
            lines += [f"  {key}", wrap_text(f"{takes}{default}", " " * 6), wrap_text(info.description or "", " " * 6)]
    return "\n".join(lines) + "\n"
