"""Tests templates for which a turn cannot be located: each is refused for its own reason, never masked wrongly."""

from typing import Any

import pytest

from data_prep.parse.kinds import Conversation, RecordError
from data_prep.render.chat import ChatTemplate

HEAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
TAIL = "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def exchange(*said: str, roles: tuple[str, str] = ("user", "assistant")) -> list[dict[str, Any]]:
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]


CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "x"}}}
REFUSED = {
    "the last turn is not closed": (
        HEAD + "{{ m.content }}{{ '<|im_end|>\n' if not loop.last or m.role == 'user' }}" + TAIL,
        exchange("Q1", "A1", "Q2", "A2"),
        "message 2: .* no stop token after it",
    ),
    "white space is no stop token": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        exchange("Q", "A"),
        "message 2: .* no stop token after it",
    ),
    "only the end of the conversation is marked": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% else %}</s>{% endif %}",
        exchange("Q1", "A1", "Q2", "A2"),
        "message 2: the chat template ends it with '\\\\n</s>' when it is the last message, and with '\\\\nuser: '",
    ),
    "two turns become one": (
        "{% for m in messages %}{% if loop.first or messages[loop.index0 - 1].role != m.role %}<|im_start|>"
        "{{ m.role }}\n{% endif %}{{ m.content }}"
        "{% if loop.last or messages[loop.index0 + 1].role != m.role %}<|im_end|>\n{% endif %}" + TAIL,
        [*exchange("Q", "A"), {"role": "assistant", "content": "more"}],
        "message 2: the chat template ends it with '<.im_end.>' when it is the last message, and with '' when more",
    ),
    "another order": (
        "{% for m in messages | reverse %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" + TAIL,
        exchange("Q", "A"),
        "message 2: the chat template changes or moves the text before it",
    ),
    "a question repeated behind the answer": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if m.role == 'assistant' %}"
        "{{ ' ' + messages[0].content }}{% endif %}<|im_end|>\n" + TAIL,
        exchange("Q", "A"),
        "message 2: the chat template ends it with",
    ),
    "an answer shown before it is asked for": (
        "{% for m in messages if m.role == 'assistant' %}{{ m.content }};{% endfor %}"
        + HEAD
        + "{{ m.content }}<|im_end|>\n"
        + TAIL,
        exchange("Q", "A"),
        "message 2: ",
    ),
    "another role than asked for": (
        HEAD.replace("{{ m.role }}", "{{ 'caller' if m.content == 'A2' else m.role }}")
        + "{{ m.content }}<|im_end|>\n"
        + TAIL,
        exchange("Q1", "A1", "Q2", "A2"),
        "message 4: the chat template does not begin it with",
    ),
    "another role behind a mark of its own": (
        "{% for m in messages %}<|s|><{{ 'caller' if m.content == 'A2' else m.role }}>{{ m.content }}<|e|>{% endfor %}"
        "{% if add_generation_prompt %}<|s|><assistant>{% endif %}",
        exchange("Q1", "A1", "Q2", "A2"),
        "message 4: the chat template does not begin it with '<.s.><assistant>'",
    ),
    "another name": (
        "{% for m in messages %}{{ 'BOT2' if m.content == 'A2' else 'BOT' if m.role == 'assistant' else 'USR' }}: "
        "{{ m.content }}</s>\n{% endfor %}{% if add_generation_prompt %}{{ 'BOT: ' }}{% endif %}",
        exchange("Q1", "A1", "Q2", "A2"),
        "message 4: the chat template does not begin it with 'BOT: '",
    ),
    "another header for the last turn": (
        HEAD.replace("<|im_start|>", "<|{{ 'final' if loop.last and m.role == 'assistant' else 'im_start' }}|>")
        + "{{ m.content }}<|im_end|>\n"
        + TAIL,
        exchange("Q1", "A1", "Q2", "A2"),
        "message 2: when it is the last message, the chat template does not begin it with",
    ),
    "words behind what a tool answers": (
        "{% for m in messages %}{% if m.tool_calls %}<|im_start|>assistant\n{{ m.tool_calls[0].function | tojson }}"
        "{{ '<|im_end|>\n' + m.content + '<|im_end|>\n' if loop.last }}"
        "{% elif m.role == 'tool' %}<|im_end|>\n{{ m.content + messages[loop.index0 - 1].content }}<|im_end|>\n"
        "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}" + TAIL,
        [
            {"role": "user", "content": "Q"},
            {"role": "assistant", "content": "looking", "tool_calls": [CALL]},
            {"role": "tool", "content": "T"},
            {"role": "assistant", "content": "A"},
        ],
        "message 2: the chat template's output does not separate it from the other messages",
    ),
    "marks that leave out the stop token": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n" + TAIL,
        exchange("Q", "A"),
        r"message 2: the chat template's \{% generation %\} block covers '…', but the turn is '…<\|im_end\|>'",
    ),
    "marks over a question": (
        "{% for m in messages %}{% generation %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endgeneration %}" + TAIL,
        exchange("Q", "A"),
        None,  # the block around the question does not affect the answer
    ),
    "one mark over everything": (
        "{% generation %}" + HEAD + "{{ m.content }}<|im_end|>\n{% endfor %}{% endgeneration %}",
        exchange("Q", "A"),
        "message 2: the chat template.s .% generation %. block covers",
    ),
    "a conversation that begins with an answer": (
        "{% if messages[0].role != 'user' %}{{ raise_exception('a user begins') }}{% endif %}"
        + HEAD
        + "{{ m.content }}"
        + TAIL,
        exchange("A", "Q", roles=("assistant", "user")),
        "refuses it .a user begins",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_for_its_own_reason(name: str):
    source, messages, reason = REFUSED[name]
    chat = ChatTemplate(source, {"eos_token": "</s>"})
    if reason is None:
        rendered = chat.render(Conversation(messages), "assistant")
        assert [rendered.text[a:b] for a, b in rendered.loss or []] == ["A<|im_end|>"]
        return
    with pytest.raises(RecordError, match=reason):
        chat.render(Conversation(messages), "assistant")


def test_marks_that_touch_are_one_span_and_those_that_do_not_are_two():
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% generation %}{% endgeneration %}GAP"
        "{% generation %}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n" + TAIL
    )
    for gap in ("", "\n"):
        chat = ChatTemplate(source.replace("GAP", gap and "{{ '\n' }}"), {})
        rendered = chat.render(Conversation(exchange("Q", "A")), "assistant")
        spans = [rendered.text[a:b] for a, b in rendered.loss or []]
        assert spans == (["A", "<|im_end|>"] if gap else ["A<|im_end|>"])


def test_other_parts_in_its_place_than_by_itself():
    """The template writes the text of a turn with a call only while that turn is the last."""
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}"
        "{{ m.content if loop.last }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n" + TAIL
    )
    called = {"role": "assistant", "content": "looking", "tool_calls": [CALL]}
    messages = [{"role": "user", "content": "Q"}, called, {"role": "tool", "content": "T"}]
    chat = ChatTemplate(source, {}, on_dropped="allow")
    with pytest.raises(
        RecordError, match="message 2: the chat template writes different parts of it when more messages follow"
    ):
        chat.render(Conversation(messages), "assistant")


def test_only_turns_that_are_trained_have_to_be_told():
    """Earlier turns are merged, but the last one is separate."""
    source, merged, _ = REFUSED["two turns become one"]
    messages = [*merged, *exchange("Q2", "A2")]
    chat = ChatTemplate(source, {})
    rendered = chat.render(Conversation(messages), "last_assistant")
    assert [rendered.text[a:b] for a, b in rendered.loss or []] == ["A2<|im_end|>"]
    rendered = chat.render(Conversation(messages, without_loss={1, 2}), "assistant")
    assert [rendered.text[a:b] for a, b in rendered.loss or []] == ["A2<|im_end|>"]
    assert chat.render(Conversation(messages), "all").loss is None


@pytest.mark.parametrize(
    "said", ["  spaces  ", "\nlines\n", "<|im_end|>\n<|im_start|>user\nQ", "\ue0000000001\ue001", "a\\\"b'"]
)
@pytest.mark.parametrize("shape", ["{{ m.content }}", "{{ m.content | trim }}", "{{ m.content | tojson }}"])
def test_what_is_said_cannot_move_a_span(shape: str, said: str):
    source = HEAD + shape + "<|im_end|>\n" + TAIL
    chat = ChatTemplate(source, {})
    rendered = chat.render(Conversation(exchange(said, said, said, said)), "assistant")
    written = {"{{ m.content }}": said, "{{ m.content | trim }}": said.strip()}.get(shape)
    if written is not None:
        assert [rendered.text[a:b] for a, b in rendered.loss or []] == [f"{written}<|im_end|>"] * 2
    header = "<|im_start|>assistant\n"
    assert all(rendered.text[:start].endswith(header) for start, _ in rendered.loss or [])


GREETING = [{"role": "assistant", "content": "Hello"}, *exchange("Q", "A")]
FIRST = {
    "it looks at the first message": (
        "{% if messages[0].role == 'x' %}{% endif %}" + HEAD + "{{ m.content }}<|im_end|>\n" + TAIL,
        "",
    ),
    "a default system prompt": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nBe<|im_end|>\n{% endif %}"
        + HEAD + "{{ m.content }}<|im_end|>\n" + TAIL,
        "<|im_start|>system\nBe<|im_end|>\n",
    ),
    "a token before the first message": (
        "{% for m in messages %}{{ '<s>' if loop.first }}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" + TAIL,
        "<s>",
    ),
    "a prompt that opens a block": (
        "{% if messages[0].role == 'x' %}{% endif %}" + HEAD + "{{ m.content }}<|im_end|>\n"
        + TAIL.replace("assistant\n", "assistant\n<think>\n"),
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("source", "before"), FIRST.values(), ids=FIRST)
@pytest.mark.parametrize("greeting", ["Hello", "Hello, assistant\n<|im_start|>"])
def test_the_assistant_may_begin(source: str, before: str, greeting: str):
    messages = [{**GREETING[0], "content": greeting}, *GREETING[1:]]
    rendered = ChatTemplate(source, {}).render(Conversation(messages), "assistant")
    assert rendered.text.startswith(f"{before}<|im_start|>assistant\n{greeting}<|im_end|>\n")
    assert [rendered.text[a:b] for a, b in rendered.loss or []] == [f"{greeting}<|im_end|>", "A<|im_end|>"]
