"""The pieces of a record by what they are, whatever its keys are called, put together to conversations."""

from dataclasses import dataclass
from typing import Any

import orjson

from data_prep.parse.columns import Columns, Layout, take
from data_prep.parse.conversation import Conversation, RecordError
from data_prep.parse.messages import TurnNames, find_turn_keys, make_exchange, parse_hh, parse_turns
from data_prep.parse.tool_calls import drop_foreign_arguments, parse_tools

# As words in texts: CSV files hold "1.0" where a column had empty cells.
LABELS = {
    "true": "false", "1": "0", "1.0": "0.0", "yes": "no", "good": "bad", "desirable": "undesirable",
    "chosen": "rejected", "accepted": "rejected", "preferred": "dispreferred", "correct": "incorrect",
    "thumbs_up": "thumbs_down",
}  # fmt: skip
GOOD_LABELS = (True, *LABELS)
BAD_LABELS = (False, *LABELS.values())


def read_label(label: Any) -> bool | None:
    """What a label says of an answer; None where it is no such label."""
    label = label.strip().casefold() if isinstance(label, str) else label
    if not isinstance(label, bool | int | float | str):
        return None
    return True if label in GOOD_LABELS else False if label in BAD_LABELS else None


def check_text(value: Any, record: dict[str, Any], key: str) -> str:
    """The value if it is text. Raises RecordError otherwise."""
    if value is None and key not in record:
        raise RecordError(f"key {key!r} is missing (found: {', '.join(map(str, record)) or 'none'})")
    if not isinstance(value, str):
        raise RecordError(f"{key!r} is a {type(value).__name__}, not a str")
    return value


@dataclass(frozen=True)
class Pieces:
    """A record with its layout: its pieces by what they are."""

    value: dict[str, Any]
    layout: Layout
    columns: Columns

    @property
    def turn_names(self) -> TurnNames:
        """Keys of role and content within a turn, as the columns name them."""
        chosen = dict(self.columns)
        return chosen.get("role") or None, chosen.get("content") or None

    def get(self, target: str) -> Any:
        """The value of a target column; None when the record has none."""
        key = self.layout.keys.get(target)
        return None if key is None else take(self.value, key)

    def text(self, target: str) -> str:
        """The text of a piece, empty where it is none. Raises RecordError."""
        value = self.get(target)
        return "" if value is None else check_text(value, self.value, self.layout.keys[target])

    def is_good(self) -> bool:
        """Whether the record's label, if it has one, says that its answer is to be learnt. Raises RecordError."""
        if "label" not in self.layout.keys:
            return True
        is_good = read_label(label := self.get("label"))
        if is_good is None:
            key = self.layout.keys["label"]
            raise RecordError(f"{key!r} is {label!r:.40}, neither good nor bad: columns: {{label: ''}} leaves it out")
        return is_good

    def parse_turns(self) -> Conversation:
        """A conversation from a list of turns."""
        conversation = self._turns_of(self.get("messages"), self.layout.keys["messages"])
        conversation.tools = parse_tools(self.get("tools")) or conversation.tools
        self._add_system_turn(conversation)
        return conversation

    def parse_pair(self) -> Conversation:
        """A conversation from prompt and completion."""
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
            raise RecordError(f"{self.layout.keys['completion']!r} begins with a user turn: it is no answer")
        return self._join(prompt, answer)

    def parse_ending(self, target: str) -> Conversation:
        """The conversation that ends with `chosen` or `rejected`: a text, a turn, turns, or all with its prompt."""
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
        """What stands before the two answers of a preference pair; may be empty."""
        if "messages" in self.layout.keys:
            return self._turns_of(self.get("messages"), self.layout.keys["messages"])
        if self.get("prompt") is None:
            return Conversation([])
        found = self._find_turns("prompt")
        return Conversation([{"role": "user", "content": self._join_prompt()}]) if found is None else found

    def _find_turns(self, target: str) -> Conversation | None:
        """The turns of a piece, if it holds turns (a list, an object, JSON text, hh-rlhf's text); None for a text."""
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
        """Turns that stand in a text as JSON; a text that is anything else, even other JSON, is a text."""
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
        """The prompt with its context in the next line."""
        return "\n".join(text for text in (self.text("prompt"), self.text("context")) if text)

    def _find_answer(self) -> str:
        """The answer; the first where there are several, as in SQuAD's `{"text": [...]}`."""
        answer = self.get("completion")
        if isinstance(answer, dict) and isinstance(answer.get("text"), list):
            answer = answer["text"]
        if isinstance(answer, list):
            if not answer:
                raise RecordError(f"{self.layout.keys['completion']!r} holds no answer")
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
                raise RecordError(f"{key!r} holds something else than [question, answer] pairs")
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
        """The record's own system prompt, where the turns bring none. Raises RecordError where they bring another."""
        system = self._system_turn()
        if not system:
            return
        first = conversation.messages[:1]
        if first and first[0]["role"] in ("system", "developer"):
            if first[0]["content"].strip() != system[0]["content"].strip():
                key = self.layout.keys["system"]
                raise RecordError(
                    f"two system prompts, {key!r} and message 1: columns: {{system: ''}} leaves out {key!r}"
                )
            return
        conversation.messages[:0] = system
        conversation.without_loss = {index + 1 for index in conversation.without_loss}


def _has_prompt(conversation: Conversation) -> bool:
    return next((m["role"] != "assistant" for m in conversation.messages if m["role"] != "system"), False)


def finish_conversation(conversation: Conversation) -> None:
    """What needs all of its pieces. Raises RecordError where there is nothing to learn."""
    drop_foreign_arguments(conversation.messages, conversation.tools)
    turns = [(i, m) for i, m in enumerate(conversation.messages) if m["role"] == "assistant"]
    if not turns:
        raise RecordError("no assistant turn: nothing to learn from")
    for number, message in turns:
        if not message["content"].strip() and not message.get("tool_calls"):
            raise RecordError(f"message {number + 1}: the assistant says nothing")
