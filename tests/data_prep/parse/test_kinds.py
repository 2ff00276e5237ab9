import copy
import json
from collections.abc import Iterator
from functools import reduce
from operator import getitem
from typing import Any

import pytest

from data_prep.parse.kinds import Conversation, Preference, RecordError, Shape, find_shape, parse_record

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]

GOOD = [
    ({"messages": [USER, ASSISTANT]}, "messages", [USER, ASSISTANT]),
    ({"conversations": [USER, ASSISTANT]}, "messages", [USER, ASSISTANT]),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ASSISTANT]},
        "messages",
        [USER, ASSISTANT],
    ),
    (
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]}]},
        "messages",
        [USER, {"role": "assistant", "content": "", "tool_calls": [{"id": "1", **CALL}]}],
    ),
    ({"conversations": TURNS, "system": "s"}, "sharegpt", [{"role": "system", "content": "s"}, USER, ASSISTANT]),
    (
        {"conversations": [TURNS[0], {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                           {"from": "observation", "value": "r"}, TURNS[1]]},
        "sharegpt",
        [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "r"}, ASSISTANT],
    ),
    ({"instruction": "q", "input": "", "output": "a"}, "alpaca", [USER, ASSISTANT]),
    (
        {"instruction": "q", "input": "more", "output": "a", "history": [["q", "a"]]},
        "alpaca",
        [USER, ASSISTANT, {"role": "user", "content": "q\nmore"}, ASSISTANT],
    ),
    ({"prompt": "q", "completion": "a"}, "prompt_completion", [USER, ASSISTANT]),
    ({"prompt": "q", "response": "a"}, "prompt_completion", [USER, ASSISTANT]),
    ({"question": "q", "answer": "a"}, "prompt_completion", [USER, ASSISTANT]),
    ({"prompt": [USER], "completion": [ASSISTANT]}, "prompt_completion", [USER, ASSISTANT]),
]  # fmt: skip


@pytest.mark.parametrize(("record", "kind", "messages"), GOOD)
def test_conversations_are_found_and_brought_to_one_form(record: dict, kind: str, messages: list):
    shape = find_shape(record, "auto", None)
    assert shape == Shape(kind)  # type: ignore[arg-type]
    parsed = parse_record(record, shape)
    assert isinstance(parsed, Conversation)
    assert parsed.messages == messages


@pytest.mark.parametrize(
    ("record", "text_key", "expected"),
    [
        ("plain", None, Shape("text")),
        ({"text": "t", "source": "s"}, None, Shape("text", "text")),
        ({"content": "t", "id": "1"}, None, Shape("text", "content")),
        ({"body": "t", "id": 1}, None, Shape("text", "body")),
        ({"body": "t", "text": "other", "id": 1}, "body", Shape("text", "body")),
    ],
)
def test_texts_are_found(record: object, text_key: str | None, expected: Shape):
    assert find_shape(record, "auto", text_key) == expected


@pytest.mark.parametrize("record", [{"a": "x", "b": "y"}, {"n": 1}, 7, ["x"]])
def test_what_is_not_clear_is_not_guessed(record: object):
    with pytest.raises(RecordError):
        find_shape(record, "auto", None)


@pytest.mark.parametrize(
    ("record", "shape", "reason"),
    [
        ({"text": "  \n"}, Shape("text", "text"), "empty text"),
        ({"body": "x"}, Shape("text", "text"), "'text' is missing .found keys: body"),
        ({"text": 3}, Shape("text", "text"), "'text' is a int, not a str"),
        ("x", Shape("messages"), "must be an object"),
        ({"messages": [USER]}, Shape("messages"), "no assistant turn"),
        ({"messages": []}, Shape("messages"), "no assistant turn"),
        ({"messages": [USER, {"role": "robot", "content": "a"}]}, Shape("messages"), "message 2: role 'robot'"),
        ({"messages": [USER, {"role": "assistant", "content": 5}]}, Shape("messages"), "message 2: content is a int"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, Shape("messages"), "the assistant turn is empty"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, Shape("sharegpt"), "from 'alien'"),
        ({"conversations": [{"from": "function_call", "value": "no json"}]}, Shape("sharegpt"), "malformed JSON"),
        ({"instruction": "q"}, Shape("alpaca"), "'output' is missing"),
        ({"instruction": "q", "output": "a", "history": ["x"]}, Shape("alpaca"), "'history'"),
        ({"question": "q"}, Shape("prompt_completion"), "'prompt' is missing .found keys: question.: .* columns"),
        ({"messages": [USER, ASSISTANT], "tools": "["}, Shape("messages"), "tools: malformed JSON"),
        ({"chosen": "a"}, Shape("preference"), "'rejected' is missing"),
        ({"chosen": 1, "rejected": "b"}, Shape("preference"), "'chosen' is a int"),
        ({"chosen": "a", "rejected": " "}, Shape("preference"), "'rejected': message 1: the assistant turn is empty"),
        ({"chosen": [ASSISTANT, USER], "rejected": "b"}, Shape("preference"), "'chosen': does not end with an"),
        ({"chosen": {"from": "alien", "value": "a"}, "rejected": "b"}, Shape("preference"), "'chosen': message 1: f"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, Shape("preference"), "'prompt' is a int"),
    ],
)  # fmt: skip
def test_what_does_not_fit_says_why(record: object, shape: Shape, reason: str):
    with pytest.raises(RecordError, match=reason):
        parse_record(record, shape)


SYSTEM, WORSE = {"role": "system", "content": "s"}, {"role": "assistant", "content": "b"}
CHOSEN, REJECTED = {"from": "gpt", "value": "a"}, {"from": "gpt", "value": "b"}
PAIRS = [
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, [USER]),
    ({"question": "q", "chosen": "a", "rejected": "b", "system": "s"}, [SYSTEM, USER]),
    ({"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, [USER]),
    ({"chosen": "a", "rejected": "b"}, []),
    ({"prompt": [SYSTEM, USER], "chosen": [ASSISTANT], "rejected": [WORSE]}, [SYSTEM, USER]),
    ({"prompt": "q", "chosen": [USER, ASSISTANT], "rejected": [USER, WORSE]}, [USER]),
    ({"system": "s", "chosen": [USER, ASSISTANT], "rejected": [USER, WORSE]}, [SYSTEM, USER]),
    ({"system": "s ", "chosen": [SYSTEM, USER, ASSISTANT], "rejected": [SYSTEM, USER, WORSE]}, [SYSTEM, USER]),
    ({"messages": [USER], "chosen": ASSISTANT, "rejected": WORSE}, [USER]),
    ({"conversations": TURNS[:1], "chosen": CHOSEN, "rejected": REJECTED}, [USER]),
    ({"conversations": [*TURNS, TURNS[0]], "chosen": CHOSEN, "rejected": REJECTED}, [USER, ASSISTANT, USER]),
    ({"conversations": TURNS[:1], "system": "s", "chosen": [CHOSEN], "rejected": [REJECTED]}, [SYSTEM, USER]),
]


@pytest.mark.parametrize(("record", "before"), PAIRS)
def test_preference_pairs_are_two_conversations(record: dict, before: list):
    shape = find_shape(record, "auto", None)
    assert shape == Shape("preference")
    parsed = parse_record(record, shape)
    assert isinstance(parsed, Preference)
    assert parsed.chosen.messages == [*before, ASSISTANT]
    assert parsed.rejected.messages == [*before, WORSE]


def test_turns_without_loss_keep_their_place_behind_the_prompt():
    prompt = [USER, {**ASSISTANT, "weight": 0}, USER]
    answer = [{**ASSISTANT, "weight": 0}, USER, ASSISTANT]
    parsed = parse_record({"system": "s", "messages": prompt, "chosen": answer, "rejected": "b"}, Shape("preference"))
    assert isinstance(parsed, Preference)
    assert (parsed.chosen.without_loss, parsed.rejected.without_loss) == ({2, 4}, {2})


@pytest.mark.parametrize("key", ["weight", "loss_weight"])
def test_a_turn_of_weight_zero_is_marked_and_the_key_is_not_shown_to_templates(key: str):
    record = {"messages": [USER, {**ASSISTANT, key: 0}, USER, {**ASSISTANT, key: 1.0}]}
    parsed = parse_record(record, Shape("messages"))
    assert isinstance(parsed, Conversation)
    assert parsed.without_loss == {1}
    assert parsed.messages == [USER, ASSISTANT, USER, ASSISTANT]


def test_weights_of_sharegpt_turns_behind_a_system_prompt():
    said = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "weight": 0}, {"from": "gpt", "value": "b"}]
    parsed = parse_record({"system": "s", "conversations": said}, Shape("sharegpt"))
    assert isinstance(parsed, Conversation)
    assert parsed.without_loss == {2}


@pytest.mark.parametrize("weight", ["0", 0.5, 2, []])
def test_a_weight_that_is_no_choice_is_refused(weight: object):
    with pytest.raises(RecordError, match="message 2: its weight is .*only 0"):
        parse_record({"messages": [USER, {**ASSISTANT, "weight": weight}]}, Shape("messages"))


@pytest.mark.parametrize(("key", "kind"), [("messages", "messages"), ("conversations", "sharegpt")])
def test_turns_that_are_json_text_are_turns(key: str, kind: str):
    sharegpt = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    turns = [USER, ASSISTANT] if key == "messages" else sharegpt
    record = {key: json.dumps(turns)}
    assert find_shape(record, "auto", None) == Shape(kind)  # type: ignore[arg-type]
    assert parse_record(record, Shape(kind)) == parse_record({key: turns}, Shape(kind))  # type: ignore[arg-type]
    with pytest.raises(RecordError, match=f"'{key}': malformed JSON"):
        parse_record({key: "[{"}, Shape(kind))  # type: ignore[arg-type]


ODDITIES = [None, True, 0, 1.5, "", "x", "{", [], ["x"], [[]], [None], {}, {"a": 1}, [{}], {"text": None}]


def test_an_object_among_plain_texts_is_told_without_a_key():
    shape = find_shape("a text", "auto", None)
    with pytest.raises(RecordError, match="^an object, but the first record of this source is plain text"):
        parse_record({"text": "t"}, shape)


def nodes(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths of all values inside a value."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from nodes(item, (*path, key))


@pytest.mark.parametrize(
    ("record", "kind"), [case[:2] for case in GOOD] + [({"text": "t"}, "text")] + [(p, "preference") for p, _ in PAIRS]
)
def test_no_mutation_of_a_record_crashes_a_parser(record: dict, kind: str):
    """Replace each value by each oddity, or remove it: parsing gives a result or a RecordError."""
    refused = 0
    for path in nodes(record):
        for oddity in [*ODDITIES, "left out"]:
            mutant = copy.deepcopy(record)
            holder = reduce(getitem, path[:-1], mutant)
            if oddity == "left out":
                del holder[path[-1]]
            else:
                holder[path[-1]] = oddity
            for shape in (Shape(kind, "text" if kind == "text" else None), None):  # type: ignore[arg-type]
                try:
                    parse_record(mutant, shape) if shape else find_shape(mutant, "auto", None)
                except RecordError as error:
                    refused += 1
                    assert str(error)
    assert refused
