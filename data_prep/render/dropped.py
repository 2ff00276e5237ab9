"""Finds content of a record that the rendered text does not contain, and names its kind."""

import json
import re
from collections.abc import Iterator
from typing import Any

from data_prep.parse.kinds import RecordError
from data_prep.render.leaves import LABEL
from data_prep.render.located import Source
from data_prep.render.rendering import Tools

EARLIER_REASONING = "reasoning of earlier turns"
UNKNOWN_TOOLS = "tools of a template that knows none"
LEFT_OUT_BY_DESIGN = (EARLIER_REASONING, UNKNOWN_TOOLS)
SHOWN = 80
THINK_TAG = re.compile(r"</?think>")
Missing = tuple[str, int | str]  # kind, and the leaf number or the text that is missing


def find_missing_leaves(source: Source) -> Iterator[Missing]:
    """Find leaves that have no place in the rendering.

    Reasoning is left out by design if the template writes it only while its turn is the last one.
    """
    placed = {place.leaf for place in source.whole().places}
    for number, leaf in enumerate(source.leaves):
        if number not in placed and leaf.kind != LABEL:
            is_design = leaf.kind == "reasoning" and _is_placed_alone(source, number)
            yield (EARLIER_REASONING if is_design else leaf.kind), number


def _is_placed_alone(source: Source, number: int) -> bool:
    try:
        alone = source.locate(source.leaves[number].message + 1)
    except RecordError:
        return False
    return any(place.leaf == number for place in alone.places)


def find_missing_parts(source: Source) -> Iterator[Missing]:
    """Find missing lines of leaves that have a place, because a template can cut parts out of a text.

    `</think>` separates reasoning from the rest of a content.
    """
    text = source.whole().text
    for number in sorted({place.leaf for place in source.whole().places}):
        leaf = source.leaves[number]
        if leaf.kind == LABEL or holds(text, leaf.text):
            continue
        reasoning, tag, answer = leaf.text.rpartition("</think>") if leaf.kind == "content" else ("", "", leaf.text)
        if line := _find_missing_line(text, answer):
            yield leaf.kind, line
        if tag and (line := _find_missing_line(text, reasoning)):
            alone = source.locate(leaf.message + 1).text
            yield (EARLIER_REASONING if _find_missing_line(alone, reasoning) is None else "reasoning"), line


def _find_missing_line(text: str, piece: str) -> str | None:
    """The first line of a piece that a text does not contain."""
    lines = (line.strip() for line in THINK_TAG.sub("\n", piece).splitlines())
    return next((line for line in lines if line and not holds(text, line)), None)


def find_missing_calls(calls: list[dict[str, Any]], written: str) -> Iterator[Missing]:
    """Find names, keys and numbers of calls that are missing in `written`, the text of their turn."""
    names = [call["function"]["name"] for call in calls]
    for call in calls:
        name = call["function"]["name"]
        if written.count(name) < names.count(name):
            yield "tool calls", name
            continue
        for value in _list_values(call["function"].get("arguments")):
            if not (holds(written, value) or value.title() in written):  # True, as Python writes it
                yield "arguments", value


def _list_values(value: Any) -> Iterator[str]:
    """Keys, numbers and booleans of a JSON value, at any depth."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _list_values(item)
    elif isinstance(value, list):
        for item in value:
            yield from _list_values(item)
    elif isinstance(value, int | float):
        yield json.dumps(value)


def find_missing_tools(tools: Tools, text: str, are_known: bool) -> Iterator[Missing]:
    """Find names, descriptions and parameters of tools that are missing; `are_known`: the template mentions tools."""
    for tool in tools or ():
        function = tool.get("function", tool)
        if not isinstance(function, dict):
            continue
        parameters = function.get("parameters")
        properties = parameters.get("properties") if isinstance(parameters, dict) else None
        pieces = [function.get("name"), function.get("description"), *(properties or ())]
        for piece in pieces:
            if isinstance(piece, str) and not holds(text, piece):
                yield ("tools" if are_known else UNKNOWN_TOOLS), piece


def shorten(text: str) -> str:
    """Cut a text after SHOWN characters, with an ellipsis."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def holds(text: str, piece: str) -> bool:
    """Whether a text contains a piece: unchanged, trimmed, escaped as in a JSON string, or line by line."""
    piece = piece.strip()
    if piece in text or json.dumps(piece, ensure_ascii=False)[1:-1] in text or json.dumps(piece)[1:-1] in text:
        return True
    lines = piece.splitlines()
    return len(lines) > 1 and all(line.strip() in text for line in lines)
