"""What a record becomes: a text, a conversation, or a pair of conversations.

A conversation has one form, whatever its spelling was, before a template sees it:
`[{"role": "system|developer|user|assistant|tool", "content": str, "reasoning_content"?: str, "tool_calls"?: [{"id"?,
"type": "function", "function": {"name": str, "arguments": dict | list | str}}], "name"?, "tool_call_id"?, …}]`.
"""

from dataclasses import dataclass, field
from typing import Any


class RecordError(ValueError):
    """A record is not what its kind says. The caller knows file and line."""


@dataclass
class Conversation:
    """`without_loss` holds indices of assistant messages that the data itself excludes (`weight: 0`)."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    without_loss: set[int] = field(default_factory=set)


@dataclass
class Preference:
    """Two whole conversations that differ in how they end."""

    chosen: Conversation
    rejected: Conversation


@dataclass(frozen=True)
class LabelledFalse:
    """A record that its own label marks as a bad answer: read, found whole, and never trained."""


Content = str | Conversation | Preference | LabelledFalse
