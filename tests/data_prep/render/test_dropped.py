"""Tests which content templates leave out, by kind, and whether the record is refused."""

import logging
from typing import Any

import pytest

from data_prep.errors import UserError
from data_prep.parse.kinds import Conversation, RecordError
from data_prep.prepare import prepare
from data_prep.render.chat import ChatTemplate
from data_prep.render.chatml import CHATML
from data_prep.store.store import Store
from tests.data_prep.conftest import write_jsonl

CONTENTS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
LAST_THOUGHT = (
    "{% for m in messages %}<|{{ m.role }}|>{% if loop.last and m.reasoning_content %}<think>{{ m.reasoning_content }}"
    "</think>{% endif %}{{ m.content }}<|end|>{% endfor %}"
)
ONE_CALL = (
    "{% if tools %}{% for t in tools %}{{ t.function.name }}{% endfor %}{% endif %}"
    "{% for m in messages %}{% if m.role != 'tool' %}<|{{ m.role }}|>{{ m.content }}{% if m.tool_calls %}<call>"
    "{{ m.tool_calls[0].function.name }} city={{ m.tool_calls[0].function.arguments.city }}</call>{% endif %}<|end|>"
    "{% endif %}{% endfor %}"
)
USERS = (
    "{% for m in messages %}{% if m.role in ('user', 'assistant') %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endif %}"
    "{% endfor %}"
)
CUT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] | trim if m.role == 'assistant' and "
    "not loop.last else m.content.split('\n--')[0] }}<|end|>{% endfor %}"
)
ASKED = {"role": "user", "content": "Q"}


def answer(content: str = "A", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def call(name: str = "look", **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


TOOLS = [{"type": "function", "function": {"name": "look", "description": "looks around", "parameters": {}}}]
CASES: list[tuple[str, list[dict[str, Any]], Any, dict[str, str]]] = [
    (CONTENTS, [ASKED, answer()], None, {}),
    (CONTENTS, [ASKED, answer(reasoning_content="R")], None, {"reasoning": "R"}),
    (CONTENTS, [ASKED, answer(thinking="R")], None, {"reasoning": "R"}),
    (CONTENTS, [ASKED, answer(thought="T")], None, {"field thought": "T"}),
    (CONTENTS, [{**ASKED, "name": "Bo", "timestamp": "today", "openai_id": "x"}, answer()], None, {}),
    (
        LAST_THOUGHT,
        [ASKED, answer(reasoning_content="R1"), {**ASKED, "content": "Q2"}, answer("A2", reasoning_content="R2")],
        None,
        {"reasoning of earlier turns": "R1"},
    ),
    (
        CUT,
        [ASKED, answer("<think>\nR1\n</think>\nA1"), {**ASKED, "content": "Q2"}, answer("<think>\nR2\n</think>\nA2")],
        None,
        {"reasoning of earlier turns": "R1"},
    ),
    (CUT, [{**ASKED, "content": "Q\n-- and more"}, answer()], None, {"content": "-- and more"}),
    (USERS, [{"role": "system", "content": "S"}, ASKED, answer()], None, {"system": "S"}),
    (USERS, [{"role": "developer", "content": "S"}, ASKED, answer()], None, {"system": "S"}),
    (CONTENTS, [ASKED, answer()], TOOLS, {"tools of a template that knows none": "look"}),
    (ONE_CALL, [ASKED, answer()], TOOLS, {"tools": "looks around"}),
    (
        ONE_CALL,
        [ASKED, answer(tool_calls=[call(city="Oslo"), call(city="Rome")])],
        None,
        {"arguments": "Rome", "tool calls": "look"},
    ),
    (ONE_CALL, [ASKED, answer(tool_calls=[call(city="Oslo", days=77)])], None, {"arguments": "days"}),
    (
        ONE_CALL,
        [ASKED, answer("x", tool_calls=[call(city="Oslo")]), {"role": "tool", "content": "T"}, answer()],
        None,
        {},
    ),
]
CASES[-1][3]["tool results"] = "T"
BY_DESIGN = ("reasoning of earlier turns", "tools of a template that knows none")


@pytest.mark.parametrize(("source", "messages", "tools", "expected"), CASES)
def test_each_piece_that_is_not_rendered_is_named(source, messages, tools, expected: dict[str, str]):
    conversation = Conversation(messages, tools)
    rendered = ChatTemplate(source, {}, on_dropped="allow").render(conversation, "assistant")
    assert rendered.dropped == expected
    if refused := [kind for kind in expected if kind not in BY_DESIGN]:
        with pytest.raises(
            RecordError, match=f"the chat template leaves out .*{refused[0]}.*on_dropped_content: allow"
        ):
            ChatTemplate(source, {}).render(conversation, "assistant")
    else:
        assert ChatTemplate(source, {}).render(conversation, "assistant") == rendered


def test_chatml_holds_everything():
    messages = [
        {"role": "system", "content": "S"},
        ASKED,
        answer(
            "", reasoning_content="R1", tool_calls=[call(city="Oslo", days=3, deep={"a": [True, "x"]}), call("find")]
        ),
        {"role": "tool", "content": "T"},
        answer("A1", reasoning_content="R2"),
        {**ASKED, "content": "Q2"},
        answer("A2", reasoning_content="R3"),
    ]
    rendered = ChatTemplate(CHATML, {}).render(Conversation(messages, TOOLS), "assistant")
    assert rendered.dropped == {}
    for piece in ("looks around", "S", "Q", "R1", "Oslo", "days", "deep", "find", "T", "A1", "R2", "Q2", "R3", "A2"):
        assert piece in rendered.text


def test_a_turn_of_which_nothing_is_left_is_refused_even_where_that_is_allowed():
    conversation = Conversation([ASKED, answer("", tool_calls=[call(city="Oslo")])])
    with pytest.raises(RecordError, match="message 2: the chat template writes none of its text"):
        ChatTemplate(CONTENTS, {}, on_dropped="allow").render(conversation, "assistant")


def test_a_build_stops_or_counts_and_says_the_first(tmp_path, recipe, caplog):
    caplog.set_level(logging.INFO)
    template = tmp_path / "t.jinja"
    template.write_text(CONTENTS)
    records = [{"messages": [ASKED, answer(**({"reasoning_content": f"R{i}"} if i else {}))]} for i in range(3)]
    path = write_jsonl(tmp_path / "a.jsonl", records)
    data = {"chat_template": str(template), "validation_share": 0.0}
    with pytest.raises(UserError, match=r"line 2: the chat template leaves out reasoning \('R1'\): .* chatml to keep"):
        prepare(*recipe(path, data=data))
    directory = prepare(*recipe(path, data={**data, "on_dropped_content": "allow"})).store_dir
    assert directory is not None
    assert Store.open(directory).manifest.noticed == {"reasoning": (2, f"{path}, line 2: R1")}
    assert f"2 records: the chat template leaves out reasoning; the first: {path}, line 2: R1" in caplog.text
    caplog.clear()
    prepare(*recipe(path, data={**data, "on_dropped_content": "allow", "streaming": True}))
    assert f"2 of the first 3 records: the chat template leaves out reasoning; the first: {path}, line 2" in caplog.text
