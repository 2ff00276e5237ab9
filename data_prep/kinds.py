"""What a record is: its kind, found from its keys, and the text or conversation it holds.

Every kind of conversation becomes one form, OpenAI messages, before anything else looks at it:
`[{"role": "system|user|assistant|tool", "content": str, "tool_calls"?: [...]}]`. A preference pair becomes two of them.
A record that does not fit raises `RecordError` with the reason; the caller knows file and line.
"""

from dataclasses import dataclass, field
from typing import Any

import orjson

from data_prep.files import MAX_RECORD_BYTES
from data_prep.options import Kind

ROLES = ("assistant", "developer", "system", "tool", "user")
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
    "function_response": "tool",
    "function_call": "function_call",
}
PROMPT_KEYS = ("prompt", "question", "query")
PROMPT_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("query", "response"))
TEXT_KEYS = ("text", "content")
TURNS_KEYS = ("messages", "conversations")


class RecordError(ValueError):
    """A record is not what its kind says."""


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


Content = str | Conversation | Preference


@dataclass(frozen=True)
class Shape:
    """How to read the records of one source: its kind, the key of a text, and the largest record."""

    kind: Kind
    text_key: str | None = None
    max_record_bytes: int = MAX_RECORD_BYTES


def find_shape(value: Any, kind: Kind, text_key: str | None) -> Shape:
    """Shape of a source by one of its records, where the recipe leaves it open. Raises RecordError."""
    if kind not in ("auto", "text"):
        return Shape(kind)
    if isinstance(value, str):
        return Shape("text")
    if not isinstance(value, dict):
        raise RecordError(f"a record is a JSON {type(value).__name__}, not an object")
    if kind == "text" or text_key:
        return Shape("text", text_key or _find_text_key(value))
    found = _find_chat_kind(_unfold(value))
    return Shape("text", _find_text_key(value)) if found is None else Shape(found)


def _unfold(value: dict[str, Any]) -> dict[str, Any]:
    """The record with its turns as a list where they are JSON text, as CSV and many a Parquet file keep them."""
    folded = [key for key in TURNS_KEYS if isinstance(value.get(key), str) and value[key].lstrip()[:2] in ("[{", "[]")]
    return {**value, **{key: _load_json(value[key], repr(key)) for key in folded}} if folded else value


def _find_chat_kind(value: dict[str, Any]) -> Kind | None:
    if "chosen" in value and "rejected" in value:
        return "preference"
    if isinstance(value.get("messages"), list):
        return "messages"
    if isinstance(turns := value.get("conversations"), list):
        return "messages" if turns and isinstance(turns[0], dict) and "role" in turns[0] else "sharegpt"
    if "instruction" in value and "output" in value:
        return "alpaca"
    if any(prompt in value and answer in value for prompt, answer in PROMPT_PAIRS):
        return "prompt_completion"
    return None


def _find_text_key(value: dict[str, Any]) -> str:
    texts = [key for key, item in value.items() if isinstance(item, str)]
    for key in (*TEXT_KEYS, *(texts if len(texts) == 1 else ())):
        if key in texts:
            return key
    raise RecordError(f"no key that is surely the text among {', '.join(value)}: set text_key or kind")


def parse_record(value: Any, shape: Shape) -> Content:
    """The text, conversation or pair of conversations in a record. Raises RecordError."""
    if shape.kind == "text":
        text = value.get(shape.text_key) if isinstance(value, dict) else value
        if isinstance(text, str) and text and not text.isspace():
            return text
    return _parse_or_refuse(value, shape)


def _parse_or_refuse(value: Any, shape: Shape) -> Content:
    if isinstance(value, str) and shape.kind == "text":
        raise RecordError("empty text")
    if not isinstance(value, dict):
        raise RecordError(f"a {shape.kind} record must be an object, not {type(value).__name__}")
    if shape.kind == "text":
        if shape.text_key is None:
            raise RecordError("an object, where this source's first record is plain text: make them two sources")
        _take(value, shape.text_key, str)
        raise RecordError("empty text")
    value = _unfold(value)
    if shape.kind == "preference":
        return Preference(*(_parse_answer(value, key) for key in ("chosen", "rejected")))
    conversation = _PARSERS[shape.kind](value)
    _check_conversation(conversation)
    return conversation


def _take(value: dict[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
    if key not in value:
        raise RecordError(f"key {key!r} is missing (found: {', '.join(map(str, value)) or 'none'})")
    if not isinstance(value[key], kind):
        wanted = kind.__name__ if isinstance(kind, type) else " or ".join(item.__name__ for item in kind)
        raise RecordError(f"{key!r} is a {type(value[key]).__name__}, not a {wanted}")
    return value[key]


def _parse_messages(value: dict[str, Any]) -> Conversation:
    turns = _take(value, "messages" if "messages" in value else "conversations", list)
    result = Conversation([], _parse_tools(value))
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or turn.get("role") not in ROLES:
            role = turn.get("role") if isinstance(turn, dict) else turn
            raise RecordError(f"message {number}: role {role!r} is none of {', '.join(ROLES)}")
        message = {key: item for key, item in turn.items() if item is not None and key not in ("weight", "loss_weight")}
        message["content"] = _flatten_content(turn.get("content"), number)
        if calls := turn.get("tool_calls"):
            message["tool_calls"] = [_parse_call(call, number) for call in _listed(calls)]
        if _has_no_loss(turn, number):
            result.without_loss.add(number - 1)
        result.messages.append(message)
    return result


def _has_no_loss(turn: dict[str, Any], number: int) -> bool:
    weight = turn.get("weight", turn.get("loss_weight"))
    if weight not in (None, 0, 1):
        raise RecordError(f"message {number}: its weight is {weight!r}: only 0 (no loss) and 1 are known")
    return weight == 0


def _flatten_content(content: Any, number: int) -> str:
    """Text of a content: a string, nothing, or a list of text parts (`{"type": "text", "text": …}`)."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise RecordError(f"message {number}: content is a {type(content).__name__}")
    texts: list[Any] = [part.get("text", part.get("value")) if isinstance(part, dict) else part for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise RecordError(f"message {number}: content holds a part that is no text")
    return "".join(texts)


def _parse_call(call: Any, number: int) -> dict[str, Any]:
    """A tool call as `{"type": "function", "function": {"name", "arguments": dict}}`, which templates expect."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RecordError(f"message {number}: a tool call without a function name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _load_json(arguments, f"message {number}: arguments of {function['name']}") if arguments else {}
    kept = {"id": call["id"]} if "id" in call else {}
    return {**kept, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _parse_tools(value: dict[str, Any]) -> list[dict[str, Any]] | None:
    tools = value.get("tools")
    if isinstance(tools, str):
        tools = _load_json(tools, "tools") if tools.strip() else None
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RecordError("'tools' is not a list of objects")
    return tools


def _load_json(text: str, what: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RecordError(f"{what}: malformed JSON ({error})") from None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _parse_sharegpt(value: dict[str, Any]) -> Conversation:
    result = Conversation(_system_turn(value), _parse_tools(value))
    for number, turn in enumerate(_take(value, "conversations", list), 1):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise RecordError(f"turn {number}: no text under 'value'")
        role = SHAREGPT_ROLES.get(str(turn.get("from")))
        if role is None:
            raise RecordError(f"turn {number}: from {turn.get('from')!r} is none of {', '.join(SHAREGPT_ROLES)}")
        if role == "function_call":
            calls = _listed(_load_json(turn["value"], f"turn {number}"))
            parsed = [_parse_call(call, number) for call in calls]
            result.messages.append({"role": "assistant", "content": "", "tool_calls": parsed})
        else:
            result.messages.append({"role": role, "content": turn["value"]})
        if _has_no_loss(turn, number):
            result.without_loss.add(len(result.messages) - 1)
    return result


def _system_turn(value: dict[str, Any]) -> list[dict[str, Any]]:
    system = value.get("system")
    return [{"role": "system", "content": system}] if isinstance(system, str) and system else []


def _parse_alpaca(value: dict[str, Any]) -> Conversation:
    messages = _system_turn(value)
    for pair in _take(value, "history", list) if value.get("history") else []:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise RecordError("'history' holds something else than [question, answer] pairs")
        messages += _exchange(*pair)
    return Conversation(messages + _exchange(_join_instruction(value), _take(value, "output", str)))


def _join_instruction(value: dict[str, Any]) -> str:
    prompt = _take(value, "instruction", str)
    if not value.get("input"):
        return prompt
    return f"{prompt}\n{_take(value, 'input', str)}" if prompt else _take(value, "input", str)


def _exchange(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _parse_prompt_completion(value: dict[str, Any]) -> Conversation:
    for prompt_key, answer_key in PROMPT_PAIRS:
        if prompt_key in value and answer_key in value:
            prompt, answer = _take(value, prompt_key, (str, list)), _take(value, answer_key, (str, list))
            if isinstance(prompt, list) and isinstance(answer, list):
                return _parse_messages({"messages": prompt + answer, "tools": value.get("tools")})
            if isinstance(prompt, list) or isinstance(answer, list):
                raise RecordError(f"{prompt_key!r} and {answer_key!r} must both be texts or both be messages")
            return Conversation(_system_turn(value) + _exchange(prompt, answer))
    pairs = ", ".join(f"{prompt}/{answer}" for prompt, answer in PROMPT_PAIRS)
    raise RecordError(f"none of the pairs {pairs} is there (found: {', '.join(map(str, value)) or 'none'})")


def _parse_answer(value: dict[str, Any], key: str) -> Conversation:
    """The conversation that ends with `value[key]`: a text, a turn, turns, or a whole conversation with its prompt."""
    answer = _take(value, key, (str, list, dict))
    try:
        end = _parse_turns([{"role": "assistant", "content": answer}] if isinstance(answer, str) else _listed(answer))
        start = Conversation([]) if _has_prompt(end) else _parse_prompt(value)
        _add_system_turn(start if start.messages else end, value)
        before = len(start.messages)
        without_loss = start.without_loss | {before + index for index in end.without_loss}
        result = Conversation(start.messages + end.messages, _parse_tools(value), without_loss)
        if result.messages[-1:] and result.messages[-1]["role"] != "assistant":
            raise RecordError("does not end with an assistant turn")
        _check_conversation(result)
    except RecordError as error:
        raise RecordError(f"{key!r}: {error}") from None
    return result


def _has_prompt(conversation: Conversation) -> bool:
    return next((m["role"] != "assistant" for m in conversation.messages if m["role"] != "system"), False)


def _add_system_turn(conversation: Conversation, value: dict[str, Any]) -> None:
    """The record's own system prompt, where the turns bring none."""
    system = _system_turn(value)
    if system and not any(message["role"] == "system" for message in conversation.messages[:1]):
        conversation.messages[:0] = system
        conversation.without_loss = {index + 1 for index in conversation.without_loss}


def _parse_prompt(value: dict[str, Any]) -> Conversation:
    """What stands before the two answers of a preference pair; may be empty."""
    for key in ("messages", "conversations", *PROMPT_KEYS):
        if isinstance(value.get(key), list):
            return _parse_turns(value[key])
    for key in PROMPT_KEYS:
        if key in value:
            return Conversation([{"role": "user", "content": _take(value, key, str)}])
    if "instruction" in value:
        return Conversation([{"role": "user", "content": _join_instruction(value)}])
    return Conversation([])


def _parse_turns(turns: list[Any]) -> Conversation:
    """Turns of either form, by the first: `from`/`value` or `role`/`content`."""
    if turns and isinstance(turns[0], dict) and "from" in turns[0]:
        return _parse_sharegpt({"conversations": turns})
    return _parse_messages({"messages": turns})


def _check_conversation(conversation: Conversation) -> None:
    turns = [(i, m) for i, m in enumerate(conversation.messages) if m["role"] == "assistant"]
    if not turns:
        raise RecordError("no assistant turn: nothing to learn from")
    for number, message in turns:
        if not message["content"].strip() and not message.get("tool_calls"):
            raise RecordError(f"message {number + 1}: the assistant says nothing")


_PARSERS = {
    "messages": _parse_messages,
    "sharegpt": _parse_sharegpt,
    "alpaca": _parse_alpaca,
    "prompt_completion": _parse_prompt_completion,
}
