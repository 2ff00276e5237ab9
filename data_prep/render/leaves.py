"""Lists the leaves of a conversation, which are its texts, and replaces them by sentinels.

A sentinel shows where a template writes a leaf, or that it does not. It starts and ends with a private-use character
and has nine characters, because some templates require that length of the id of a call.
"""

import re
from typing import Any, NamedTuple

from data_prep.render.rendering import Messages

SENTINEL = "\ue000{:07d}\ue001"
FOUND = re.compile("\ue000(\\d{7})\ue001")
LABEL = "label"
# Keys of a message that identify or date it. An answer cannot depend on their values.
LABELS = {
    "name", "id", "tool_call_id", "call_id", "message_id", "parent_id", "parent_message_id", "uuid", "hash", "type",
    "timestamp", "created_at", "create_time", "updated_at", "date", "time", "model", "model_name", "author", "sender",
    "recipient", "channel", "lang", "language", "locale", "country", "state", "hashed_ip", "source", "status",
    "finish_reason", "stop_reason", "object", "split", "format", "from",
}  # fmt: skip

LABEL_ENDINGS = ("_id", "_ip", "_at", "_hash", "_time")


class Leaf(NamedTuple):
    """A text of message `message`, counted from 0. `kind` names it in logs; a missing label is not reported."""

    message: int
    kind: str
    text: str


class Marked(NamedTuple):
    """A conversation with sentinels; leaf i is replaced by `SENTINEL.format(i)`."""

    messages: Messages
    leaves: list[Leaf]


def mark_leaves(messages: Messages) -> Marked:
    """Replace all leaves by sentinels, and leave out values that are neither text nor calls.

    If a template uses such a value, the marked conversation does not fit the record's text, and is not used.
    """
    marker = _Marker(None)
    return Marked([marker.mark(number, message) for number, message in enumerate(messages)], marker.leaves)


def replace_leaf(messages: Messages, leaf: int) -> Messages:
    """Replace one leaf by its sentinel and keep everything else."""
    marker = _Marker(leaf)
    return [marker.mark(number, message) for number, message in enumerate(messages)]


class _Marker:
    def __init__(self, chosen: int | None):
        self._chosen = chosen
        self.leaves: list[Leaf] = []

    def mark(self, number: int, message: dict[str, Any]) -> dict[str, Any]:
        marked: dict[str, Any] = {}
        for key, item in message.items():
            if key == "role":
                marked[key] = item
            elif key == "tool_calls":
                marked[key] = [self._mark_call(number, call) for call in item] if isinstance(item, list) else item
            elif isinstance(item, str):
                marked[key] = self._mark_text(number, _name_kind(key, message["role"]), item)
            elif self._chosen is not None:
                marked[key] = item
        return marked

    def _mark_call(self, number: int, call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        marked = {**call}
        if isinstance(call.get("id"), str):
            marked["id"] = self._mark_text(number, LABEL, call["id"])
        if "arguments" in function:
            marked["function"] = {**function, "arguments": self._mark_value(number, function["arguments"])}
        return marked

    def _mark_value(self, number: int, value: Any) -> Any:
        if isinstance(value, str):
            return self._mark_text(number, "arguments", value)
        if isinstance(value, dict):
            return {key: self._mark_value(number, item) for key, item in value.items()}
        return [self._mark_value(number, item) for item in value] if isinstance(value, list) else value

    def _mark_text(self, number: int, kind: str, text: str) -> str:
        if not text or text.isspace():  # templates test whether a text is empty
            return text
        self.leaves.append(Leaf(number, kind, text))
        leaf = len(self.leaves) - 1
        return SENTINEL.format(leaf) if self._chosen in (None, leaf) else text


def _name_kind(key: str, role: str) -> str:
    if key == "reasoning_content":
        return "reasoning"
    if key == "content":
        return {"system": "system", "developer": "system", "tool": "tool results"}.get(role, "content")
    return LABEL if key in LABELS or key.endswith(LABEL_ENDINGS) else f"field {key}"
