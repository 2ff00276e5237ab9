"""Converts a content that is a list of typed parts to the message fields that chat templates use.

Parts are text, reasoning, tool calls and tool results, in the formats of OpenAI, Anthropic, Gemini and LLaMA-Factory.
A part that is not text (image, audio, file) or has an unknown type makes the record bad; the reason names the type.
"""

from dataclasses import dataclass, field
from typing import Any

import orjson

from data_prep.parse.conversation import RecordError
from data_prep.parse.tool_calls import parse_call, parse_calls

TEXT_TYPES = ("text", "input_text", "output_text")
REASONING_TYPES = ("reasoning", "reasoning_content", "thinking", "think")
CALL_TYPES = ("tool_call", "tool_calls", "tool_use", "function_call", "function")
RESULT_TYPES = ("tool_result", "tool_response", "tool_output", "function_result", "function_call_output")
MEDIA = ("image", "audio", "video", "file", "document", "picture", "img", "media", "inline_data", "inlinedata")
TEXT_KEYS = ("text", "value", "content", "thinking", "think", "reasoning", "reasoning_content")
RESULT_KEYS = ("content", "output", "text", "value", "result")
CALL_ID_KEYS = ("tool_use_id", "tool_call_id", "call_id", "id")


@dataclass
class Parts:
    """The fields of a content. `results` are messages of role tool that precede the rest."""

    text: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)


def parse_content(content: Any, role: str, where: str) -> Parts:
    """Parse a content: a string, None, one part or a list of parts.

    Raises RecordError whose reason begins with `where`.
    """
    if content is None or isinstance(content, str):
        return Parts(content or "")
    if role == "tool" and not _is_parts(content):
        return Parts(dump_json(content, where))
    if not isinstance(content, list | dict):
        raise RecordError(f"{where}: content is a {type(content).__name__}, not a text or a list of parts")
    parts = Parts()
    for part in content if isinstance(content, list) else [content]:
        _add(parts, part, role, where)
    return parts


def _is_parts(content: Any) -> bool:
    """Whether the content of a tool message is a list of parts instead of data that the tool returned."""
    parts = content if isinstance(content, list) else [content]
    typed = [part for part in parts if isinstance(part, dict) and _type_of(part)]
    return bool(typed) and all(isinstance(part, str) or part in typed for part in parts)


def _type_of(part: dict[str, Any]) -> str | None:
    """Return the type of a part in lower case.

    A part without a type is text if it has no other key, or media if it has a key of media.
    """
    if isinstance(part.get("type"), str):
        return part["type"].casefold()
    keys = {key for key, item in part.items() if item is not None}
    return "text" if keys and keys <= {"text", "index"} else next((key for key in keys if is_media(key)), None)


def is_media(name: str) -> bool:
    """Whether a type or key is one of media that a text model cannot read: `image_url`, `input_audio`, …"""
    return name.casefold().removeprefix("input_").startswith(MEDIA)


def _add(parts: Parts, part: Any, role: str, where: str) -> None:
    if isinstance(part, str):
        part = {"type": "text", "text": part}
    if not isinstance(part, dict):
        raise RecordError(f"{where}: content contains a {type(part).__name__}, which is not a part")
    kind = _type_of(part)
    if kind in TEXT_TYPES:
        _check_order(parts.calls, "text", where)
        parts.text += _find_text(part, TEXT_KEYS, where)
    elif kind in REASONING_TYPES and role == "assistant":
        _check_order(parts.calls or parts.text, "reasoning", where)
        parts.reasoning += _find_text(part, TEXT_KEYS, where)
    elif kind in CALL_TYPES and role == "assistant":
        parts.calls += _find_calls(part, where)
    elif kind in RESULT_TYPES and role in ("user", "tool"):
        _check_order(parts.text, "a tool result", where)
        parts.results.append(_find_result(part, where))
    elif kind is not None and is_media(kind):
        raise RecordError(f"{where}: a part of type {kind!r}, but the model reads only text")
    else:
        known = ", ".join((TEXT_TYPES[0], REASONING_TYPES[0], CALL_TYPES[0], RESULT_TYPES[0]))
        raise RecordError(
            f"{where}: a part of type {part.get('type')!r} in a turn of role {role}; known types: {known}"
        )


def _check_order(before: Any, what: str, where: str) -> None:
    """Raises RecordError for an order that templates cannot write: reasoning, text, calls; results before text."""
    if before:
        raise RecordError(f"{where}: {what} follows a part that templates write after it: split the turn into two")


def _find_text(part: dict[str, Any], keys: tuple[str, ...], where: str) -> str:
    found = [part[key] for key in keys if part.get(key) is not None]
    if not found or not isinstance(found[0], str):
        raise RecordError(f"{where}: content contains a part without a text (type {part.get('type')!r})")
    return found[0]


def _find_calls(part: dict[str, Any], where: str) -> list[dict[str, Any]]:
    for key in ("value", "tool_calls", "tool_call", "function_call"):
        if part.get(key) is not None:
            return parse_calls(part[key], where)
    return [parse_call({key: item for key, item in part.items() if key != "type"}, where)]


def _find_result(part: dict[str, Any], where: str) -> dict[str, Any]:
    content = next((part[key] for key in RESULT_KEYS if part.get(key) is not None), None)
    call_id = next((part[key] for key in CALL_ID_KEYS if isinstance(part.get(key), str)), None)
    named = {"name": part["name"]} if isinstance(part.get("name"), str) else {}
    text = parse_content(content, "tool", where).text
    return {"role": "tool", "content": text, **named, **({} if call_id is None else {"tool_call_id": call_id})}


def dump_json(value: Any, where: str) -> str:
    """Write a value as JSON text. Raises RecordError for one that JSON cannot express."""
    try:
        return orjson.dumps(value).decode()
    except TypeError as error:  # bytes in a column, or objects that are nested too deeply for the JSON writer
        raise RecordError(f"{where}: the content cannot be written as JSON ({error})") from None
