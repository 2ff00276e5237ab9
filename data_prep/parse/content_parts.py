"""The content of a message that is a list of typed parts, as the fields that chat templates know.

OpenAI, Anthropic, Gemini and LLaMA-Factory spell them differently: text, reasoning, calls of tools, results of tools.
What is not text (an image, a sound, a file) and what is of no known type makes the record a bad one, by name.
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
    """What a content holds. `results` are turns of role tool that stand before the rest."""

    text: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)


def parse_content(content: Any, role: str, where: str) -> Parts:
    """Of a string, nothing, one part or a list of parts. `where` begins each reason. Raises RecordError."""
    if content is None or isinstance(content, str):
        return Parts(content or "")
    if role == "tool" and not _is_parts(content):
        return Parts(dump_json(content, where))
    if not isinstance(content, list | dict):
        raise RecordError(f"{where}: content is a {type(content).__name__}")
    parts = Parts()
    for part in content if isinstance(content, list) else [content]:
        _add(parts, part, role, where)
    return parts


def _is_parts(content: Any) -> bool:
    """Whether what a tool returned is parts of a message, and not data of its own."""
    parts = content if isinstance(content, list) else [content]
    typed = [part for part in parts if isinstance(part, dict) and _type_of(part)]
    return bool(typed) and all(isinstance(part, str) or part in typed for part in parts)


def _type_of(part: dict[str, Any]) -> str | None:
    """The type in lower case; of a part without one, text where it holds nothing else."""
    if isinstance(part.get("type"), str):
        return part["type"].casefold()
    keys = {key for key, item in part.items() if item is not None}
    return "text" if keys and keys <= {"text", "index"} else next((key for key in keys if is_media(key)), None)


def is_media(name: str) -> bool:
    """Whether a type or key is of what a model of text cannot read: `image_url`, `input_audio`, …"""
    return name.casefold().removeprefix("input_").startswith(MEDIA)


def _add(parts: Parts, part: Any, role: str, where: str) -> None:
    if isinstance(part, str):
        part = {"type": "text", "text": part}
    if not isinstance(part, dict):
        raise RecordError(f"{where}: content holds a {type(part).__name__}, which is no part")
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
        _check_order(parts.text, "the result of a tool", where)
        parts.results.append(_find_result(part, where))
    elif kind is not None and is_media(kind):
        raise RecordError(f"{where}: a part of type {kind!r}: the model reads text only")
    else:
        known = ", ".join((TEXT_TYPES[0], REASONING_TYPES[0], CALL_TYPES[0], RESULT_TYPES[0]))
        raise RecordError(f"{where}: a part of type {part.get('type')!r} in a turn of role {role}, known are {known}")


def _check_order(before: Any, what: str, where: str) -> None:
    """Templates write reasoning, text and calls in this order, and results before what a user says."""
    if before:
        raise RecordError(f"{where}: {what} stands behind what no template writes before it: split the turn in two")


def _find_text(part: dict[str, Any], keys: tuple[str, ...], where: str) -> str:
    found = [part[key] for key in keys if part.get(key) is not None]
    if not found or not isinstance(found[0], str):
        raise RecordError(f"{where}: content holds a part that is no text (type {part.get('type')!r})")
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
    """A value as JSON text. Raises RecordError for what JSON cannot express."""
    try:
        return orjson.dumps(value).decode()
    except TypeError as error:  # bytes in a column, objects nested deeper than JSON writers go
        raise RecordError(f"{where}: a content that JSON cannot hold ({error})") from None
