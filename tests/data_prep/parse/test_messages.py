from typing import Any

import pytest

from data_prep.parse.conversation import Conversation, RecordError
from data_prep.parse.kinds import Shape, parse_record
from data_prep.parse.messages import parse_turns
from data_prep.parse.tool_calls import parse_tools

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALLED, RESULT = {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "r"}


def typed(role: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "content": list(parts)}


SPELLINGS = [
    ([{"from": "human", "value": "q"}, {"role": "assistant", "text": "a"}], [USER, ASSISTANT]),
    ([{"role": "Prompter", "text": "q"}, {"author": "model", "content": "a"}], [USER, ASSISTANT]),
    (["q", "a"], [USER, ASSISTANT]),
    ([{"user": "q", "assistant": "a"}, {"human": "q", "bot": "a"}], [USER, ASSISTANT] * 2),
    ([{"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}}], [CALLED]),
    ([{"role": "assistant", "content": "", "tool_calls": '[{"name": "f", "parameters": {"x": 1}}]'}], [CALLED]),
    ([{"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'}], [CALLED]),
    ([{"role": "function", "name": "f", "content": "r"}], [{**RESULT, "name": "f"}]),
    ([{"role": role, "content": "r"} for role in ("ipython", "environment", "tool_response", "observation")],
     [RESULT] * 4),
    ([{"role": "tool", "content": {"t": [1, None]}}], [{"role": "tool", "content": '{"t":[1,null]}'}]),
    ([{"role": "tool", "content": ["x", "y"]}], [{"role": "tool", "content": '["x","y"]'}]),
    ([{**ASSISTANT, "reasoning": "t"}], [{**ASSISTANT, "reasoning_content": "t"}]),
    ([{**ASSISTANT, "thinking": "t", "reasoning_content": "t"}], [{**ASSISTANT, "reasoning_content": "t"}]),
    ([typed("user", {"type": "input_text", "text": "q"})], [USER]),
    ([typed("assistant", {"type": "reasoning", "value": "t"}, {"type": "text", "value": "a"})],
     [{**ASSISTANT, "reasoning_content": "t"}]),
    ([typed("assistant", {"type": "think", "think": "t"}, {"type": "output_text", "text": "a"})],
     [{**ASSISTANT, "reasoning_content": "t"}]),
    ([typed("assistant", {"type": "tool_call", "value": '{"name": "f", "arguments": {"x": 1}}'})], [CALLED]),
    ([typed("assistant", {"type": "text", "text": ""},
            {"id": "7", "type": "tool_use", "name": "f", "input": {"x": 1}})],
     [{**CALLED, "tool_calls": [{"id": "7", **CALL}]}]),
    ([typed("user", {"type": "tool_result", "tool_use_id": "7", "content": [{"type": "text", "text": "r"}]},
            {"type": "text", "text": "q"})], [{**RESULT, "tool_call_id": "7"}, USER]),
    ([typed("user", {"type": "tool_result", "tool_use_id": "7", "content": "r"})], [{**RESULT, "tool_call_id": "7"}]),
    ([typed("tool", {"type": "text", "value": "r"})], [RESULT]),
]  # fmt: skip


@pytest.mark.parametrize(("turns", "messages"), SPELLINGS)
def test_every_spelling_becomes_one_form(turns: list[Any], messages: list[dict[str, Any]]):
    assert parse_turns(turns).messages == messages


REFUSED = [
    (
        typed("user", {"type": "image_url", "value": "cat.png"}),
        "a part of type 'image_url', but the model reads",
    ),
    (typed("user", {"type": "input_audio", "input_audio": {}}), "'input_audio', but the model reads only text"),
    (typed("user", {"type": "file", "file": {}}), "'file', but the model reads only text"),
    (typed("user", {"inline_data": {"data": "x"}}), "'inline_data', but the model reads only text"),
    ({**USER, "images": ["cat.png"]}, "it has 'images', but the model reads only text"),
    (typed("user", {"type": "hologram", "text": "x"}), "a part of type 'hologram' in a turn of role user"),
    (typed("user", {"type": "reasoning", "text": "x"}), "type 'reasoning' in a turn of role user"),
    (typed("user", {"type": "text", "text": 3}), "a part without a text"),
    (typed("assistant", {"type": "text", "text": "a"}, {"type": "reasoning", "text": "t"}), "reasoning follows a part"),
    (
        typed("assistant", {"type": "tool_use", "name": "f", "input": {}}, {"type": "text", "text": "a"}),
        "text follows",
    ),
    ({**ASSISTANT, "reasoning": "t", "thinking": "u"}, "two different reasoning texts"),
    ({**USER, "reasoning": "t"}, "reasoning in a turn of role user"),
    ({**ASSISTANT, "tool_calls": [CALL], "function_call": CALL}, "tool calls in two places"),
    ({**USER, "tool_calls": [CALL]}, "a tool call in a turn of role user"),
    ({"role": "assistant"}, "no content"),
    ({**ASSISTANT, "mask": 1}, "the meaning of 'mask' is not known"),
    ({**ASSISTANT, "train": True, "weight": 0}, "train|weight contradict"),
]


@pytest.mark.parametrize(("turn", "reason"), REFUSED)
def test_what_is_not_text_or_not_certain_is_refused_by_name(turn: dict[str, Any], reason: str):
    with pytest.raises(RecordError, match=f"^message 2: .*({reason})"):
        parse_turns([USER, turn])


@pytest.mark.parametrize("key", ["images", "image", "videos", "audios"])
def test_a_record_that_comes_with_media_is_refused(key: str):
    record = {"messages": [USER, ASSISTANT]}
    with pytest.raises(RecordError, match=f"it has '{key}', but the model reads only text"):
        parse_record({**record, key: ["cat.png"]}, Shape("messages"))
    for nothing in ([], None, ""):
        assert parse_record({**record, key: nothing}, Shape("messages"))


@pytest.mark.parametrize(
    ("mark", "without_loss"),
    [
        ({"weight": 0}, {1}), ({"loss_weight": 0.0}, {1}), ({"train": False}, {1}), ({"training": False}, {1}),
        ({"loss": False}, {1}), ({"masked": True}, {1}), ({"masked": False}, set()), ({"train": True}, set()),
    ],
)  # fmt: skip
def test_marks_of_turns_without_loss(mark: dict[str, Any], without_loss: set[int]):
    parsed = parse_turns([USER, {**ASSISTANT, **mark}])
    assert parsed.without_loss == without_loss
    assert parsed.messages == [USER, ASSISTANT]


def test_bare_functions_become_tools():
    bare = {"name": "f", "description": "d"}
    wrapped = {"type": "function", "function": bare}
    assert parse_tools([bare, wrapped]) == [wrapped, wrapped]
    assert parse_tools('[{"name": "f", "description": "d"}]') == [wrapped]
    anthropic = parse_tools([{"name": "f", "input_schema": {"type": "object"}}])
    assert anthropic == [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    assert parse_tools([]) is None and parse_tools("") is None


def test_a_list_as_python_prints_it_is_told_from_damaged_json():
    with pytest.raises(RecordError, match="'messages': Python repr instead of JSON: write it with json.dumps"):
        parse_turns("[{'role': 'user', 'content': 'q'}]")


def test_null_arguments_that_the_tool_does_not_know_are_absent():
    """Such nulls come from JSON that was written from a table. A null argument that the tool declares is kept."""
    properties = {"city": {"type": "string", "enum": None}, "to": None}
    schema = {"type": "object", "properties": {**properties, "days": {"type": "integer", "default": None}}}
    tools = [{"type": "function", "function": {"name": "f", "description": None, "parameters": schema}}]
    arguments = {"city": "Oslo", "to": None, "body": None, "days": None, "deep": {"x": None}}
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    turns = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]

    def written(**more: Any) -> dict[str, Any]:
        found = parse_record({"messages": turns, **more}, Shape("messages"))
        assert isinstance(found, Conversation)
        return found.messages[1]["tool_calls"][0]["function"]["arguments"]

    assert written(tools=tools) == {"city": "Oslo", "days": None, "deep": {"x": None}}
    assert written() == arguments
    assert written(tools=[{"type": "function", "function": {"name": "g", "parameters": schema}}]) == arguments
    kept = {"city": {"type": "string"}, "days": {"type": "integer", "default": None}}
    parameters = {"type": "object", "properties": kept}
    assert parse_tools(tools) == [{"type": "function", "function": {"name": "f", "parameters": parameters}}]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_the_system_may_declare_the_tools(role: str):
    tools = [{"type": "function", "function": {"name": "f"}}]
    for spelled in (tools, [{"name": "f"}], '[{"name": "f"}]'):
        turns = [{"role": role, "content": "s", "tools": spelled}, USER, ASSISTANT]
        for record in ({"messages": turns}, {"prompt": turns[:2], "completion": turns[2:]}):
            found = parse_record(record, Shape("messages" if "messages" in record else "prompt_completion"))
            assert isinstance(found, Conversation)
            assert found.tools == tools
            assert found.messages == [{"role": role, "content": "s"}, USER, ASSISTANT]
    with pytest.raises(RecordError, match="message 2: tools are declared in two places: keep one"):
        parse_turns([turns[0], turns[0]])


def test_two_system_prompts_that_differ_are_refused():
    turns = [{"role": "system", "content": "be kind"}, USER, ASSISTANT]
    same = parse_record({"system": " be kind", "messages": turns}, Shape("messages"))
    assert isinstance(same, Conversation)
    assert same.messages == turns
    with pytest.raises(RecordError, match="two system prompts, 'system' and message 1: columns: {system: ''} ignores"):
        parse_record({"system": "be brief", "messages": turns}, Shape("messages"))
    off = parse_record({"system": "be brief", "messages": turns}, Shape("messages", columns=(("system", ""),)))
    assert isinstance(off, Conversation)
    assert off.messages == turns
