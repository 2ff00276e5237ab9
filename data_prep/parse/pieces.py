"""Builds conversations from the values of a record, which the layout finds by target, whatever the keys are called."""

from dataclasses import dataclass
from typing import Any

import orjson

from data_prep.parse.columns import Columns, Layout, take
from data_prep.parse.conversation import Conversation, RecordError
from data_prep.parse.messages import TurnNames, find_turn_keys, make_exchange, parse_hh, parse_turns
from data_prep.parse.tool_calls import drop_foreign_arguments, parse_tools

# Good label -> bad label, as texts. CSV files have "1.0" if a column had empty cells.
LABELS = {
    "true": "false", "1": "0", "1.0": "0.0", "yes": "no", "good": "bad", "desirable": "undesirable",
    "chosen": "rejected", "accepted": "rejected", "preferred": "dispreferred", "correct": "incorrect",
    "thumbs_up": "thumbs_down",
}  # fmt: skip
GOOD_LABELS = (True, *LABELS)
BAD_LABELS = (False, *LABELS.values())


def read_label(label: Any) -> bool | None:
    """Return whether a label marks an answer as good (True) or bad (False); None for any other label."""
    label = label.strip().casefold() if isinstance(label, str) else label
    if not isinstance(label, bool | int | float | str):
        return None
    return True if label in GOOD_LABELS else False if label in BAD_LABELS else None


def check_text(value: Any, record: dict[str, Any], key: str) -> str:
    """Return a value that must be a text. Raises RecordError otherwise."""
    if value is None and key not in record:
        raise RecordError(f"key {key!r} is missing (found keys: {', '.join(map(str, record)) or 'none'})")
    if not isinstance(value, str):
        raise RecordError(f"{key!r} is a {type(value).__name__}, not a str")
    return value


@dataclass(frozen=True)
class RecordValues:
    """The values of a record by target."""

    value: dict[str, Any]
    layout: Layout
    columns: Columns

    @property
    def turn_names(self) -> TurnNames:
        """Keys of role and content within a turn that the recipe names."""
        chosen = dict(self.columns)
        return chosen.get("role") or None, chosen.get("content") or None

    def get(self, target: str) -> Any:
        """Return the value of a target; None if the record has none."""
        key = self.layout.keys.get(target)
        return None if key is None else take(self.value, key)

    def text(self, target: str) -> str:
        """Return the text of a target; "" if the record has none. Raises RecordError when it is not a text."""
        value = self.get(target)
        return "" if value is None else check_text(value, self.value, self.layout.keys[target])

    def is_good(self) -> bool:
        """Whether the answer is to be trained on: the record has no label, or a good one.

        Raises RecordError for a label that is neither good nor bad.
        """
        if "label" not in self.layout.keys:
            return True
        is_good = read_label(label := self.get("label"))
        if is_good is None:
            key = self.layout.keys["label"]
            raise RecordError(f"{key!r} is {label!r:.40}, neither good nor bad: columns: {{label: ''}} ignores it")
        return is_good

    def parse_turns(self) -> Conversation:
        """Build a conversation from a list of turns. Raises RecordError."""
        conversation = self._turns_of(self.get("messages"), self.layout.keys["messages"])
        conversation.tools = parse_tools(self.get("tools")) or conversation.tools
        self._add_system_turn(conversation)
        return conversation

    def parse_pair(self) -> Conversation:
        """Build a conversation from a prompt and a completion. Raises RecordError."""
        prompt, answer = self._find_turns("prompt"), self._find_turns("completion")
        if prompt is None and answer is None:
            messages = self._system_turn() + self._parse_history()
            end = make_exchange(self._join_prompt(), self._find_answer())
            if reasoning := self.text("reasoning"):
                end[1]["reasoning_content"] = reasoning
            return Conversation([*messages, *end], parse_tools(self.get("tools")))
        if prompt is None:
            prompt = Conversation([{"role": "user", "content": self._join_prompt()}])
        if answer is None:
            answer = Conversation([{"role": "assistant", "content": self._find_answer()}])
        if answer.messages[:1] and answer.messages[0]["role"] == "user":
            raise RecordError(f"{self.layout.keys['completion']!r} begins with a user turn, so it is not an answer")
        return self._join(prompt, answer)

    def parse_ending(self, target: str) -> Conversation:
        """Build the conversation that ends with the answer `chosen` or `rejected`.

        The answer may be a text, a turn, a list of turns, or the whole conversation. Raises RecordError.
        """
        key = self.layout.keys[target]
        answer = self.get(target)
        try:
            end = self._find_turns(target)
            if end is None:
                end = Conversation([{"role": "assistant", "content": check_text(answer, self.value, key)}])
            start = Conversation([]) if _has_prompt(end) else self._parse_prompt()
            result = self._join(start, end)
            if result.messages[-1:] and result.messages[-1]["role"] != "assistant":
                raise RecordError("does not end with an assistant turn")
            finish_conversation(result)
        except RecordError as error:
            raise RecordError(f"{key!r}: {error}") from None
        return result

    def _join(self, start: Conversation, end: Conversation) -> Conversation:
        before = len(start.messages)
        without_loss = start.without_loss | {before + index for index in end.without_loss}
        tools = parse_tools(self.get("tools")) or start.tools or end.tools
        result = Conversation(start.messages + end.messages, tools, without_loss)
        self._add_system_turn(result)
        return result

    def _parse_prompt(self) -> Conversation:
        """Build the conversation before the two answers of a preference pair; it may be empty."""
        if "messages" in self.layout.keys:
            return self._turns_of(self.get("messages"), self.layout.keys["messages"])
        if self.get("prompt") is None:
            return Conversation([])
        found = self._find_turns("prompt")
        return Conversation([{"role": "user", "content": self._join_prompt()}]) if found is None else found

    def _find_turns(self, target: str) -> Conversation | None:
        """Parse the turns of a target (a list, an object, JSON text, hh-rlhf's text); None if it is a plain text."""
        value = self.get(target)
        if isinstance(value, str):
            return self._parse_json_turns(value) or parse_hh(value)
        if isinstance(value, dict) and isinstance(value.get("messages"), list):
            found = self._turns_of(value["messages"], self.layout.keys[target])
            found.tools = parse_tools(value.get("tools")) or found.tools
            return found
        if isinstance(value, dict) and find_turn_keys(value)[0] is not None:
            value = [value]
        if not isinstance(value, list):
            return None
        is_turns = not value or any(find_turn_keys(turn, self.turn_names)[0] is not None for turn in value)
        return self._turns_of(value, self.layout.keys[target]) if is_turns else None

    def _parse_json_turns(self, text: str) -> Conversation | None:
        """Parse turns from JSON text; None for any other text, even other JSON."""
        if text.lstrip()[:2] != "[{":
            return None
        try:
            turns = orjson.loads(text)
        except orjson.JSONDecodeError:
            return None
        is_turns = all(None not in find_turn_keys(turn, self.turn_names) for turn in turns)
        return self._turns_of(turns, "turns") if is_turns else None

    def _turns_of(self, turns: Any, what: str) -> Conversation:
        return parse_turns(turns, self.turn_names, what)

    def _join_prompt(self) -> str:
        """Join the prompt and its context with a line feed."""
        return "\n".join(text for text in (self.text("prompt"), self.text("context")) if text)

    def _find_answer(self) -> str:
        """Return the answer; the first if there are several, as in SQuAD's `{"text": [...]}`."""
        answer = self.get("completion")
        if isinstance(answer, dict) and isinstance(answer.get("text"), list):
            answer = answer["text"]
        if isinstance(answer, list):
            if not answer:
                raise RecordError(f"{self.layout.keys['completion']!r} contains no answer")
            answer = answer[0]["text"] if isinstance(answer[0], dict) and "text" in answer[0] else answer[0]
        return check_text(answer, self.value, self.layout.keys["completion"])

    def _parse_history(self) -> list[dict[str, Any]]:
        key, history = self.layout.keys.get("history", ""), self.get("history")
        if not history:
            return []
        if not isinstance(history, list):
            raise RecordError(f"{key!r} is a {type(history).__name__}, not a list")
        if all(find_turn_keys(turn)[0] is not None for turn in history):
            return self._turns_of(history, key).messages
        for pair in history:
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
                raise RecordError(f"{key!r} must be a list of [question, answer] pairs")
        return [message for pair in history for message in make_exchange(*pair)]

    def _system_turn(self) -> list[dict[str, Any]]:
        system = self.get("system")
        if isinstance(system, dict | list):  # Gemini's {"parts": [...]}, Anthropic's text parts
            parts = system.get("parts", system) if isinstance(system, dict) else system
            system = parse_turns([{"role": "system", "content": parts}]).messages[0]["content"]
        if system is not None and not isinstance(system, str):
            raise RecordError(f"{self.layout.keys['system']!r} is a {type(system).__name__}, not a str")
        return [{"role": "system", "content": system}] if system else []

    def _add_system_turn(self, conversation: Conversation) -> None:
        """Add the record's system prompt if the turns have none. Raises RecordError if they have a different one."""
        system = self._system_turn()
        if not system:
            return
        first = conversation.messages[:1]
        if first and first[0]["role"] in ("system", "developer"):
            if first[0]["content"].strip() != system[0]["content"].strip():
                key = self.layout.keys["system"]
                raise RecordError(f"two system prompts, {key!r} and message 1: columns: {{system: ''}} ignores {key!r}")
            return
        conversation.messages[:0] = system
        conversation.without_loss = {index + 1 for index in conversation.without_loss}


def _has_prompt(conversation: Conversation) -> bool:
    return next((m["role"] != "assistant" for m in conversation.messages if m["role"] != "system"), False)


def finish_conversation(conversation: Conversation) -> None:
    """Check and clean up a complete conversation. Raises RecordError if it contains no answer to train on."""
    drop_foreign_arguments(conversation.messages, conversation.tools)
    turns = [(i, m) for i, m in enumerate(conversation.messages) if m["role"] == "assistant"]
    if not turns:
        raise RecordError("no assistant turn, so there is nothing to train on")
    for number, message in turns:
        if not message["content"].strip() and not message.get("tool_calls"):
            raise RecordError(f"message {number + 1}: the assistant turn is empty")
