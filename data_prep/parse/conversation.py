"""Defines the parsed content of a record: a text, a conversation, or a pair of conversations.

The messages of a conversation have the same form for every data set:
`[{"role": "system|developer|user|assistant|tool", "content": str, "reasoning_content"?: str, "tool_calls"?: [{"id"?,
"type": "function", "function": {"name": str, "arguments": dict | list | str}}], "name"?, "tool_call_id"?, …}]`.
"""

from dataclasses import dataclass, field
from typing import Any


class RecordError(ValueError):
    """A record cannot be used, for example because it does not fit its kind. The caller adds file and line."""


@dataclass
class Conversation:
    """Messages and tools; `without_loss` has indices of assistant messages that the data excludes (`weight: 0`)."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    without_loss: set[int] = field(default_factory=set)


@dataclass
class Preference:
    """Two complete conversations that differ in their last answer."""

    chosen: Conversation
    rejected: Conversation


@dataclass(frozen=True)
class LabelledFalse:
    """A valid record that is not trained on, because its label marks the answer as bad."""


Content = str | Conversation | Preference | LabelledFalse
