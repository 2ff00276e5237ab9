"""Finds the kind of a record from its keys, and parses it to a text, a conversation, or a pair of conversations.

`columns` decides what each key means, and `messages` parses turns. A record that cannot be parsed raises `RecordError`
with the reason.
"""

from dataclasses import dataclass
from typing import Any

from data_prep.options import MAX_RECORD_BYTES, Kind, find_named_kind
from data_prep.parse.columns import (
    Columns,
    Layout,
    explain_unknown,
    find_layout,
    take,
)  # fmt: skip
from data_prep.parse.content_parts import MEDIA
from data_prep.parse.conversation import Content, Conversation, LabelledFalse, Preference, RecordError
from data_prep.parse.known_columns import LABELS, PAIRS, TEXT_COLUMNS
from data_prep.parse.messages import ROLES, find_turn_keys
from data_prep.parse.pieces import RecordValues, check_text, finish_conversation, read_label

__all__ = [
    "Content",
    "Conversation",
    "LabelledFalse",
    "Preference",
    "RecordError",
    "Shape",
    "find_shape",
    "parse_record",
]


@dataclass(frozen=True)
class Shape:
    """How to read the records of one source.

    text_key: key of the text of a record of kind text.
    max_record_bytes: size of the largest record, bytes.
    columns: keys that the recipe names.
    records_key: keys that lead to the records of a JSON file; delimiter: of a CSV file. None: detected in each file.
    """

    kind: Kind
    text_key: str | None = None
    max_record_bytes: int = MAX_RECORD_BYTES
    columns: Columns = ()
    records_key: str | None = None
    delimiter: str | None = None


def find_shape(value: Any, kind: Kind, text_key: str | None, columns: Columns = ()) -> Shape:
    """Find the shape of a source from one of its records and from what the recipe sets. Raises RecordError."""
    if isinstance(value, str) and kind in ("auto", "text"):
        return Shape("text")
    value = _as_object(value)
    if not isinstance(value, dict):
        if kind not in ("auto", "text"):
            return Shape(kind, columns=columns)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            raise RecordError(f"a list of {len(value)} objects instead of one record: write one object on each line")
        raise RecordError(f"a record is a JSON {type(value).__name__}, not an object")
    named = find_named_kind(columns)
    if kind == "text" or text_key or (kind == "auto" and named == "text"):
        return Shape("text", text_key or dict(columns).get("text") or _find_text_key(value))
    columns = _settle_label(value, columns)
    if kind != "auto":
        return Shape(kind, columns=columns)
    layout = find_layout(value, kind, columns)
    if layout is None and named is not None:
        raise RecordError(
            f"columns for {named} are incomplete: {_show_columns(columns)} (found keys: {', '.join(value)})"
        )
    if layout is None and _find_strong_text(value) is None and _holds_message(value):
        raise RecordError(explain_unknown(value))
    return Shape("text", _find_text_key(value)) if layout is None else Shape(layout.kind, columns=columns)


def _show_columns(columns: Columns) -> str:
    return "columns: {" + ", ".join(f"{target}: {key}" for target, key in columns) + "}"


def _as_object(value: Any) -> Any:
    """Wrap a record that is a list of turns in an object; return any other record unchanged."""
    if isinstance(value, list) and value and all(find_turn_keys(turn)[0] is not None for turn in value):
        return {"messages": value}
    return value


def _settle_label(value: dict[str, Any], columns: Columns) -> Columns:
    """Add the key of a label that marks answers as good or bad; every record must then have it.

    A label with another meaning, such as a class number or name, is left out.
    """
    if "label" in dict(columns):
        return columns
    key = next((key for key in value if str(key).strip().casefold() in LABELS), None)
    if key is None or value[key] is None:
        return columns
    return (*columns, ("label", "" if read_label(value[key]) is None else key))


def _holds_message(value: dict[str, Any]) -> bool:
    role, content = find_turn_keys(value)
    return bool(role and content) and str(value[str(role)]).casefold() in ROLES


def _find_strong_text(value: dict[str, Any]) -> str | None:
    return (
        None if _holds_message(value) else next((key for key in TEXT_COLUMNS if isinstance(value.get(key), str)), None)
    )


def _find_text_key(value: dict[str, Any]) -> str:
    if key := _find_strong_text(value):
        return key
    if bytes_key := next((key for key in TEXT_COLUMNS if isinstance(value.get(key), bytes)), None):
        raise RecordError(f"{bytes_key!r} contains bytes that are not UTF-8")
    texts = [key for key, item in value.items() if isinstance(item, str)]
    inner = [key for key, item in value.items() if isinstance(item, list) and item and isinstance(item[0], dict)]
    if len(texts) == 1 and inner:
        what = f"a text under {texts[0]!r}, but also objects under {inner[0]!r}"
        how = f"set text_key: {texts[0]} to read the text, or records_key: {inner[0]} to read the objects"
        raise RecordError(f"{what}: {how}")
    if len(texts) == 1 and texts[0].strip().casefold() in (prompt for prompt, _ in PAIRS):
        what = f"a prompt under {texts[0]!r}, but no known key of an answer (found keys: {', '.join(map(str, value))})"
        raise RecordError(f"{what}: set columns: {{completion: …}}, or text_key: {texts[0]} to train on prompts alone")
    if len(texts) == 1:
        return texts[0]
    raise RecordError(explain_unknown(value))


def parse_record(value: Any, shape: Shape) -> Content:
    """Parse a record to a text, a conversation or a pair of conversations. Raises RecordError."""
    if shape.kind == "text":
        text = take(value, shape.text_key or "") if isinstance(value, dict) else value
        if isinstance(text, str) and text and not text.isspace():
            return text
    return _parse_or_refuse(value, shape)


def _parse_or_refuse(value: Any, shape: Shape) -> Content:
    if isinstance(value, str) and shape.kind == "text":
        raise RecordError("empty text")
    value = _as_object(value) if shape.kind != "text" else value
    if not isinstance(value, dict):
        raise RecordError(f"a record of kind {shape.kind} must be an object, not {type(value).__name__}")
    if shape.kind == "text":
        if shape.text_key is None:
            raise RecordError("an object, but the first record of this source is plain text: make them two sources")
        check_text(take(value, shape.text_key), value, shape.text_key)
        raise RecordError("empty text")
    _refuse_media(value)
    layout = find_record_layout(value, shape)
    record = RecordValues(value, layout, shape.columns)
    if shape.kind == "preference":
        return Preference(*(record.parse_ending(target) for target in ("chosen", "rejected")))
    conversation = record.parse_turns() if "messages" in layout.keys else record.parse_pair()
    finish_conversation(conversation)
    return conversation if record.is_good() else LabelledFalse()


def find_record_layout(value: dict[str, Any], shape: Shape) -> Layout:
    """Find the keys of a record of a source. Raises RecordError when one is missing."""
    layout = find_layout(value, shape.kind, shape.columns)
    if layout is None:
        raise RecordError(_explain_missing(value, shape.kind))
    return layout


def _explain_missing(value: dict[str, Any], kind: Kind) -> str:
    wanted = {
        "messages": ("messages",), "sharegpt": ("conversations",), "preference": ("chosen", "rejected"),
        "alpaca": ("instruction", "output"), "prompt_completion": ("prompt", "completion"),
    }[kind]  # fmt: skip
    found = ", ".join(map(str, value)) or "none"
    targets = {"conversations": "messages", "instruction": "prompt", "output": "completion"}
    line = ", ".join(f"{targets.get(name, name)}: …" for name in wanted)
    missing = next((name for name in wanted if value.get(name) is None), None)
    why = (
        f"key {missing!r} is missing"
        if missing
        else f"{wanted[0]!r} is a {type(value[wanted[0]]).__name__}, not a list"
    )
    return f"{why} (found keys: {found}): if keys have other names, set columns: {{{line}}}"


def _refuse_media(value: dict[str, Any]) -> None:
    for key, item in value.items():
        if str(key).casefold().rstrip("s") in MEDIA[:3] and item:
            raise RecordError(f"it has {key!r}, but the model reads only text, so it would not be trained on")
