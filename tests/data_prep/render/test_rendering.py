"""Tests that a template gets arguments, reasoning, contents and the date in the form that it expects."""

from typing import Any

import pytest

from data_prep.parse.kinds import Conversation, RecordError
from data_prep.render.chat import ChatTemplate
from data_prep.render.rendering import Renderer


def call_by(expression: str) -> str:
    """Make a template that writes calls with this expression."""
    return (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }} "
        + expression.replace("ARGS", "c.function.arguments")
        + "{% endfor %}<|end|>{% endfor %}"
    )


JOINED = call_by("{{ '' + ARGS }}")
FORMATTED = call_by("{{ ARGS }}")
DUMPED = call_by("{{ ARGS | tojson }}")
WALKED = call_by("{% for k, v in ARGS.items() %}{{ k }}={{ v }};{% endfor %}")
EITHER = call_by("{{ ARGS if ARGS is string else ARGS | tojson }}")
OSLO = {"city": "Oslo", "days": 3}
SPELLED = '{"days":3,  "city": "Oslo"}'


def render(source: str, arguments: Any, **more: Any) -> str:
    call = {"type": "function", "function": {"name": "look", "arguments": arguments}}
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "", "tool_calls": [call], **more}]
    rendered = ChatTemplate(source, {}).render(Conversation(messages), "assistant")
    (span,) = rendered.loss or []
    return rendered.text[slice(*span)].removeprefix("<|assistant|>")


@pytest.mark.parametrize(
    ("source", "arguments", "expected"),
    [
        (JOINED, OSLO, 'look {"city": "Oslo", "days": 3}<|end|>'),
        (JOINED, SPELLED, f"look {SPELLED}<|end|>"),
        (FORMATTED, OSLO, 'look {"city": "Oslo", "days": 3}<|end|>'),
        (FORMATTED, SPELLED, f"look {SPELLED}<|end|>"),
        (DUMPED, OSLO, 'look {"city": "Oslo", "days": 3}<|end|>'),
        (DUMPED, SPELLED, 'look {"days": 3, "city": "Oslo"}<|end|>'),
        (WALKED, SPELLED, "look days=3;city=Oslo;<|end|>"),
        (EITHER, OSLO, 'look {"city": "Oslo", "days": 3}<|end|>'),
        (JOINED, {"text": "é 猫 \"quoted\""}, 'look {"text": "é 猫 \\"quoted\\""}<|end|>'),
        (DUMPED, {"text": "é 猫 \"quoted\"\n"}, 'look {"text": "é 猫 \\"quoted\\"\\n"}<|end|>'),
        (JOINED, {}, "look {}<|end|>"),
        (DUMPED, "", "look {}<|end|>"),
        (DUMPED, [1, "a"], 'look [1, "a"]<|end|>'),
        (JOINED, "not JSON", "look not JSON<|end|>"),
    ],
)  # fmt: skip
def test_arguments_are_written_once_as_json(source: str, arguments: Any, expected: str):
    assert render(source, arguments) == expected


@pytest.mark.parametrize("read", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("given", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_there_under_the_name_that_a_template_reads(read: str, given: str):
    source = f"{{% for m in messages %}}<|{{{{ m.role }}}}|>{{{{ m.{read} }}}} {{{{ m.content }}}}<|end|>{{% endfor %}}"
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", given: "R"}]
    rendered = ChatTemplate(source, {}).render(Conversation(messages), "assistant")
    assert "<|assistant|>R A<|end|>" in rendered.text
    assert rendered.dropped == {}


def test_the_clock_does_not_move_between_two_renderings():
    renderer = Renderer("{{ strftime_now('%H:%M:%S.%f') }} {{ messages[0].content }}", {})
    messages = [{"role": "user", "content": "Q"}]
    assert renderer.render(messages, None) == renderer.render(messages, None)
    assert len(renderer.render(messages, None).text) == len("12:34:56.123456 Q")


def test_whatever_a_template_raises_is_said_of_the_record():
    for source, reason in (("{{ 1 / 0 }}", "division by zero"), ("{{ raise_exception('no  \n more') }}", "no more")):
        with pytest.raises(RecordError, match=f"the chat template refuses it .{reason}"):
            Renderer(source, {}).render([{"role": "user", "content": "Q"}], None)


@pytest.mark.parametrize(("known", "expected"), [("'system', 'developer'", "developer"), ("'system'", "system")])
def test_a_developer_is_the_system_of_a_template_that_knows_none(known: str, expected: str):
    source = (
        "{% for m in messages if m.role in [" + known + ", 'user', 'assistant'] %}<{{ m.role }}>{{ m.content }}</s>"
    )
    source += "{% endfor %}{{ '<assistant>' if add_generation_prompt }}"
    messages = [{"role": role, "content": role[0].upper()} for role in ("developer", "user", "assistant")]
    rendered = ChatTemplate(source, {}).render(Conversation(messages), "assistant")
    assert rendered.text == f"<{expected}>D</s><user>U</s><assistant>A</s>"
