"""Converts turns in any of the known formats to messages in the form that `conversation` defines.

A turn is an object with a role and a content (`role`/`content`, `from`/`value`, `role`/`text`, …), or an object with a
question and its answer under two keys (`human`/`assistant`). If all turns are plain texts, user and assistant
alternate.
"""

import re
from typing import Any

from data_prep.parse.content_parts import MEDIA, Parts, parse_content
from data_prep.parse.conversation import Conversation, RecordError
from data_prep.parse.tool_calls import load_json, parse_calls, parse_tools

ROLE_NAMES = {
    "system": ("system",),
    "developer": ("developer",),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "model", "bot", "chatbot", "ai", "bard", "bing"),
    "tool": ("tool", "function", "observation", "ipython", "environment", "tool_response", "tool_result",
             "tool_output", "function_response", "function_result"),
    "function_call": ("function_call", "tool_call"),
}  # fmt: skip
ROLES = {name: role for role, names in ROLE_NAMES.items() for name in names}
ROLE_KEYS = ("role", "from", "speaker", "author", "sender")
CONTENT_KEYS = ("content", "value", "text", "message", "utterance", "parts")
EXCHANGE_KEYS = (
    ("user", "assistant"), ("human", "assistant"), ("human", "gpt"), ("human", "bot"), ("user", "bot"),
    ("input", "output"), ("prompt", "response"), ("prompt", "completion"), ("question", "answer"),
    ("instruction", "output"), ("instruction", "response"), ("user_input", "model_output"),
)  # fmt: skip
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "think")
WEIGHT_KEYS = ("weight", "loss_weight", "train", "training", "trainable", "loss")
MASKED_KEY = "masked"  # of torchtune: true if a turn carries no loss
UNCLEAR_KEYS = ("mask", "train_detail", "training_detail", "loss_scale", "loss_mask")
CALL_KEYS = ("tool_calls", "function_call")
HH_TURN = re.compile(r"(?:^|\n\n)\s*(Human|Assistant):")
TurnNames = tuple[str | None, str | None]  # keys of a turn's role and content that the recipe names


def parse_turns(turns: Any, names: TurnNames = (None, None), what: str = "messages") -> Conversation:
    """Convert turns to a conversation, with the tools that a system turn declares.

    Raises RecordError that names the turn by its number, from 1.
    """
    turns = load_json(turns, repr(what)) if isinstance(turns, str) else turns
    if not isinstance(turns, list):
        raise RecordError(f"{what!r} is a {type(turns).__name__}, not a list")
    if turns and all(isinstance(turn, str) for turn in turns):
        turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    result = Conversation([])
    for number, turn in enumerate(turns, 1):
        _add_turn(result, turn, names, f"message {number}")
    return result


def find_turn_keys(turn: Any, names: TurnNames = (None, None)) -> tuple[str | None, str | None]:
    """Find the keys of a turn's role and content; None for one that it does not have."""
    if not isinstance(turn, dict):
        return None, None
    role = next((key for key in (names[0], *ROLE_KEYS) if key and turn.get(key) is not None), None)
    contents = ("value", "content", *CONTENT_KEYS) if role == "from" else CONTENT_KEYS
    found = [key for key in (names[1], *contents) if key and key in turn]
    return role, next((key for key in found if turn[key] is not None), found[0] if found else None)


def find_exchange_keys(turn: dict[str, Any]) -> tuple[str, str] | None:
    """Find the two keys of a turn that contains a question and its answer."""
    return next((pair for pair in EXCHANGE_KEYS if all(isinstance(turn.get(key), str) for key in pair)), None)


def make_exchange(question: str, answer: str) -> list[dict[str, Any]]:
    """Make a user message and an assistant message."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _add_turn(result: Conversation, turn: Any, names: TurnNames, where: str) -> None:
    if not isinstance(turn, dict):
        raise RecordError(f"{where}: {turn!r:.50} is not an object with a role; known roles are {', '.join(ROLES)}")
    role_key, content_key = find_turn_keys(turn, names)
    if role_key is None and (pair := find_exchange_keys(turn)):
        result.messages += make_exchange(*(turn[key] for key in pair))
        return
    spelled = turn.get(role_key) if role_key else None
    role = ROLES.get(spelled.strip().casefold()) if isinstance(spelled, str) else None
    if role is None:
        raise RecordError(f"{where}: {role_key or 'role'} {spelled!r} is not one of {', '.join(ROLES)}")
    content = turn.get(content_key) if content_key else None
    if role == "function_call":
        calls = parse_calls(content, where)
        message = {"role": "assistant", "content": "", "tool_calls": calls}
        result.messages.append(message)
    else:
        if content_key is None and not any(turn.get(key) for key in CALL_KEYS):
            raise RecordError(f"{where}: no content (found keys: {', '.join(map(str, turn))})")
        _add_message(result, turn, role, (role_key, content_key), where)
    if _has_no_loss(turn, where):
        result.without_loss.add(len(result.messages) - 1)


def _add_message(result: Conversation, turn: dict[str, Any], role: str, keys: TurnNames, where: str) -> None:
    _refuse_media(turn, where)
    parts = parse_content(turn.get(keys[1]) if keys[1] else None, role, where)
    others = {key: item for key, item in turn.items() if item is not None and key not in (*keys, *_TAKEN_KEYS)}
    if role in ("system", "developer") and (tools := parse_tools(others.pop("tools", None))):
        if result.tools:
            raise RecordError(f"{where}: tools are declared in two places: keep one")
        result.tools = tools
    message: dict[str, Any] = {"role": role, "content": parts.text, **others}
    if reasoning := _find_reasoning(turn, role, parts, where):
        message["reasoning_content"] = reasoning
    if calls := _find_calls(turn, role, parts, where):
        message["tool_calls"] = calls
    if parts.results:
        if role == "tool":  # the results are the whole turn
            ids = {key: others[key] for key in ("name", "tool_call_id") if key in others}
            result.messages += [{**ids, **found} for found in parts.results]
            return
        result.messages += parts.results
        if not parts.text:
            return
    result.messages.append(message)


_TAKEN_KEYS = frozenset((*WEIGHT_KEYS, MASKED_KEY, *REASONING_KEYS, *CALL_KEYS))


def _refuse_media(turn: dict[str, Any], where: str) -> None:
    for key in (f"{kind}{end}" for kind in MEDIA[:3] for end in ("", "s")):
        if turn.get(key):
            raise RecordError(f"{where}: it has {key!r}, but the model reads only text")


def _find_reasoning(turn: dict[str, Any], role: str, parts: Parts, where: str) -> str:
    spelled = [turn[key] for key in REASONING_KEYS if turn.get(key)]
    if not all(isinstance(text, str) for text in spelled):
        raise RecordError(f"{where}: its reasoning is not a text")
    found = {*spelled, parts.reasoning} - {""}
    if len(found) > 1:
        raise RecordError(f"{where}: two different reasoning texts ({', '.join(REASONING_KEYS)}): keep one")
    if found and role != "assistant":
        raise RecordError(f"{where}: reasoning in a turn of role {role}: only assistant turns have it")
    return next(iter(found), "")


def _find_calls(turn: dict[str, Any], role: str, parts: Parts, where: str) -> list[dict[str, Any]]:
    spelled = [turn[key] for key in CALL_KEYS if turn.get(key)]
    if len(spelled) + bool(parts.calls) > 1:
        raise RecordError(f"{where}: tool calls in two places (tool_calls, function_call, parts): keep one")
    if (spelled or parts.calls) and role != "assistant":
        raise RecordError(f"{where}: a tool call in a turn of role {role}: only assistant turns have it")
    return parse_calls(spelled[0], where) if spelled else parts.calls


def _has_no_loss(turn: dict[str, Any], where: str) -> bool:
    if key := next((key for key in UNCLEAR_KEYS if turn.get(key) is not None), None):
        raise RecordError(f"{where}: the meaning of {key!r} is not known: mark a turn without loss by weight: 0")
    marks = {key: turn[key] for key in (*WEIGHT_KEYS, MASKED_KEY) if turn.get(key) is not None}
    for key, weight in marks.items():
        if weight not in (0, 1):
            raise RecordError(f"{where}: its {key} is {weight!r}, but only 0 (no loss) and 1 are supported")
    carries = {bool(weight) != (key == MASKED_KEY) for key, weight in marks.items()}
    if len(carries) > 1:
        raise RecordError(f"{where}: {' and '.join(marks)} contradict each other")
    return carries == {False}


def parse_hh(text: str) -> Conversation | None:
    """Parse a text in the format of Anthropic's hh-rlhf ("\\n\\nHuman: …\\n\\nAssistant: …"); None for any other text.

    An empty assistant turn at the end, which asks for an answer, is left out.
    """
    starts = list(HH_TURN.finditer(text))
    if not starts or starts[0].start() or starts[0][1] != "Human" or len({start[1] for start in starts}) < 2:
        return None
    ends = [*(start.start() for start in starts[1:]), len(text)]
    turns = [(start[1], text[start.end() : end].strip()) for start, end in zip(starts, ends, strict=True)]
    if turns[-1] == ("Assistant", ""):
        del turns[-1]
    roles = {"Human": "user", "Assistant": "assistant"}
    return Conversation([{"role": roles[who], "content": what} for who, what in turns])
