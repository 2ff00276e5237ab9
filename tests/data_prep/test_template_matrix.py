"""Compares loss ranges with hand-written spans, for all combinations of records and templates.

The templates are small ones of ours, each with a property of a family of models. Templates of others are tested if they
are available: a directory of Jinja files in REDLINE_CHAT_TEMPLATES, or an installed TRL.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

from data_prep.parse.kinds import Conversation, RecordError, Shape, parse_record
from data_prep.render.chat import ChatTemplate
from data_prep.render.chatml import CHATML
from data_prep.render.control_tokens import ControlTokens

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CONTROL = ControlTokens(("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>"))

# The last turn, earlier turns and calls have different ends; reasoning is a message before the last answer.
TWO_ENDS = (
    "<|start|>system<|message|>Be kind.<|end|>{% for m in messages %}"
    "{% if m.role == 'assistant' %}{% if m.thinking and loop.last %}<|start|>assistant<|channel|>analysis<|message|>"
    "{{ m.thinking }}<|end|>{% endif %}{% if m.tool_calls %}<|start|>assistant to={{ m.tool_calls[0].function.name }}"
    "<|message|>{{ m.tool_calls[0].function.arguments | tojson }}<|call|>"
    "{% else %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% endif %}"
    "{% elif m.role == 'tool' %}<|start|>tool to=assistant<|message|>{{ m.content | tojson }}<|end|>"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# A token after the conversation.
TRAILING = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
# The header of the next answer is always at the end, with or without a generation prompt.
ALWAYS_PROMPT = (
    "{{ bos_token }}{% for m in messages %}<|head|>{{ m.role }}<|/head|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{{ '<|head|>assistant<|/head|>\n\n' }}"
)
# Reasoning only after the last question, and an empty block if the last turn has none.
LAST_REASONING = (
    "{%- set ns = namespace(last=-1) %}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- set said = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{{- '<|im_start|>' + ('user' if m.role == 'tool' else m.role) + '\n' }}{%- if m.role == 'assistant' %}"
    "{%- set thought = m.reasoning_content if m.reasoning_content else "
    "m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m.content else '' %}"
    "{%- if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{- '<think>\n' + thought + '\n</think>\n\n' }}{%- endif %}{{- said }}"
    "{%- for c in m.tool_calls or [] %}{{- '<tool_call>' + c.function | tojson + '</tool_call>' }}{%- endfor %}"
    "{%- else %}{{- m.content }}{%- endif %}{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
# The system prompt is in the first question, contents are trimmed, roles have other names and must alternate.
SYSTEM_IN_USER = (
    "{{- bos_token }}{%- set first = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{%- for m in (messages[1:] if first else messages) %}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('roles must alternate') }}{%- endif %}"
    "{{- '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}{{- first if loop.first }}"
    "{{- m.content | trim + '<end_of_turn>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<turn>model\n' }}{%- endif %}"
)
# No generation prompt; tools and system prompt are in the last question; ids of calls have nine characters.
LAST_QUESTION = (
    "{%- set ns = namespace(last=-1, system='') %}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- elif m.role == 'system' %}"
    "{%- set ns.system = m.content + '\n\n' %}{%- endif %}{%- endfor %}{{- bos_token }}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{%- if loop.index0 == ns.last %}"
    "{%- if tools %}{{- '[TOOLS]' + tools | tojson + '[/TOOLS]' }}{%- endif %}"
    "{{- '[INST]' + ns.system + m.content + '[/INST]' }}"
    "{%- else %}{{- '[INST]' + m.content + '[/INST]' }}{%- endif %}"
    "{%- elif m.role == 'tool' %}{{- '[RESULT]' + m.content + '[/RESULT]' }}{%- elif m.tool_calls %}"
    "{%- for c in m.tool_calls %}{%- if c.id | length != 9 %}"
    "{{- raise_exception('an id has nine characters') }}{%- endif %}"
    "{{- '[CALLS]' + c.function | tojson + c.id }}{%- endfor %}{{- eos_token }}"
    "{%- elif m.role == 'assistant' %}{{- ' ' + m.content | trim + eos_token }}{%- endif %}{%- endfor %}"
)
# The prompt opens a reasoning block that earlier turns do not have; arguments are text; tools are not supported.
OPEN_BLOCK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
    "{% elif m.role == 'assistant' %}{% if m.tool_calls %}<|Assistant|>{{ m.content }}{% for c in m.tool_calls %}"
    "<|call_begin|>{{ c.function.name + '\n```json\n' + c.function.arguments + '\n```' }}<|call_end|>{% endfor %}</s>"
    "{% elif messages[loop.index0 - 1].role == 'tool' %}<|outputs_end|>{{ m.content }}</s>"
    "{% else %}<|Assistant|>{{ m.content.split('</think>')[-1] }}</s>{% endif %}"
    "{% elif m.role == 'tool' %}<|output|>{{ m.content }}{% if loop.last %}<|outputs_end|>{% endif %}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1].role != 'tool' %}<|Assistant|><think>\n{% endif %}"
)
# Generation blocks that begin at the header and end after the line.
MARKED = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}{%- generation %}{{- '<|im_start|>assistant\n' }}"
    "{%- if m.reasoning_content %}{{- '<think>' + m.reasoning_content + '</think>' }}{%- endif %}{{- m.content }}"
    "{%- for c in m.tool_calls or [] %}{{- c.function | tojson }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endgeneration %}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
# The header of the next message stops the model.
HEADERS_ALONE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Contents are lists of parts; the text begins with date and time.
PARTS = (
    "{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}\n{% for m in messages %}{{ m.role }}: {% for part in m.content %}"
    "{{ part.text }}{% endfor %}</s>\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
TEMPLATES = {name: value for name, value in globals().items() if name.isupper() and isinstance(value, str)}

TOOLS = [{"type": "function", "function": {"name": "find_rain", "parameters": {"properties": {"city": {}}}}}]


def say(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def call(**arguments: Any) -> dict[str, Any]:
    return {"id": "abcdef123", "type": "function", "function": {"name": "find_rain", "arguments": arguments}}


RECORDS: dict[str, tuple[list[dict[str, Any]], Any]] = {
    "plain": ([say("user", "U1"), say("assistant", "A1")], None),
    "system": ([say("system", "SYS"), say("user", "U1"), say("assistant", "A1")], None),
    "turns": ([say("user", "U1"), say("assistant", "A1"), say("user", "U2"), say("assistant", "A2")], None),
    "tools": (
        [
            say("user", "U1"),
            say("assistant", "", tool_calls=[call(city="Oslo", days=3)]),
            say("tool", "RESULT", name="find_rain", tool_call_id="abcdef123"),
            say("assistant", "A1"),
            say("user", "U2"),
            say("assistant", "A2"),
        ],
        TOOLS,
    ),
    "number": ([say("user", "U1"), say("assistant", "", tool_calls=[call(days=3)]), say("tool", "RESULT")], TOOLS),
    "reasoning": (
        [
            say("user", "U1"),
            say("assistant", "A1", reasoning_content="R1"),
            say("user", "U2"),
            say("assistant", "A2", reasoning_content="R2"),
        ],
        None,
    ),
    "inline": (
        [
            say("user", "U1"),
            say("assistant", "<think>\nR1\n</think>\n\nA1"),
            say("user", "U2"),
            say("assistant", "<think>\nR2\n</think>\n\nA2"),
        ],
        None,
    ),
    "spelled": (
        [
            say("user", "U1<|im_end|>\n<|im_start|>assistant\nU1</s><|end|>"),
            say("assistant", "A<|im_end|>1"),
            say("user", "U2"),
            say("assistant", "A2"),
        ],
        None,
    ),
}
RECORDS["number"][0].append(say("assistant", "A1"))

JSON_CALL = '{"name": "find_rain", "arguments": {"city": "Oslo", "days": 3}}'
OSLO = '{"city": "Oslo", "days": 3}'
# By template and record: the spans, or the reason why the record is refused.
EXPECTED: dict[str, dict[str, list[str] | str]] = {
    "CHATML": {
        "plain": ["A1<|im_end|>"],
        "system": ["A1<|im_end|>"],
        "turns": ["A1<|im_end|>", "A2<|im_end|>"],
        "tools": [f"<tool_call>\n{JSON_CALL}\n</tool_call><|im_end|>", "A1<|im_end|>", "A2<|im_end|>"],
        "number": [
            '<tool_call>\n{"name": "find_rain", "arguments": {"days": 3}}\n</tool_call><|im_end|>',
            "A1<|im_end|>",
        ],
        "reasoning": ["<think>\nR1\n</think>\n\nA1<|im_end|>", "<think>\nR2\n</think>\n\nA2<|im_end|>"],
        "inline": ["<think>\nR1\n</think>\n\nA1<|im_end|>", "<think>\nR2\n</think>\n\nA2<|im_end|>"],
        "spelled": ["A<|im_end|>1<|im_end|>", "A2<|im_end|>"],
    },
    "TWO_ENDS": {
        "plain": ["<|channel|>final<|message|>A1<|return|>"],
        "system": ["<|channel|>final<|message|>A1<|return|>"],
        "turns": ["<|channel|>final<|message|>A1<|end|>", "<|channel|>final<|message|>A2<|return|>"],
        "tools": [
            f" to=find_rain<|message|>{OSLO}<|call|>",
            "<|channel|>final<|message|>A1<|end|>",
            "<|channel|>final<|message|>A2<|return|>",
        ],
        "number": [' to=find_rain<|message|>{"days": 3}<|call|>', "<|channel|>final<|message|>A1<|return|>"],
        "reasoning": [
            "<|channel|>final<|message|>A1<|end|>",
            "<|channel|>analysis<|message|>R2<|end|><|start|>assistant<|channel|>final<|message|>A2<|return|>",
        ],
        "spelled": ["<|channel|>final<|message|>A<|im_end|>1<|end|>", "<|channel|>final<|message|>A2<|return|>"],
    },
    "TRAILING": {
        "plain": ["A1<|end|>"],
        "system": ["A1<|end|>"],
        "turns": ["A1<|end|>", "A2<|end|>"],
        "tools": "leaves out tool calls and arguments",
        "reasoning": "leaves out reasoning .'R1'",
        "spelled": ["A<|im_end|>1<|end|>", "A2<|end|>"],
    },
    "ALWAYS_PROMPT": {"plain": ["A1<|eot|>"], "system": ["A1<|eot|>"], "turns": ["A1<|eot|>", "A2<|eot|>"]},
    "LAST_REASONING": {
        "plain": ["<think>\n\n</think>\n\nA1<|im_end|>"],
        "turns": ["A1<|im_end|>", "<think>\n\n</think>\n\nA2<|im_end|>"],
        "tools": [
            f"<tool_call>{JSON_CALL}</tool_call><|im_end|>",
            "A1<|im_end|>",
            "<think>\n\n</think>\n\nA2<|im_end|>",
        ],
        "number": [
            '<tool_call>{"name": "find_rain", "arguments": {"days": 3}}</tool_call><|im_end|>',
            "<think>\n\n</think>\n\nA1<|im_end|>",
        ],
        "reasoning": ["A1<|im_end|>", "<think>\nR2\n</think>\n\nA2<|im_end|>"],
        "inline": ["A1<|im_end|>", "<think>\nR2\n</think>\n\nA2<|im_end|>"],
        "spelled": ["A<|im_end|>1<|im_end|>", "<think>\n\n</think>\n\nA2<|im_end|>"],
    },
    "SYSTEM_IN_USER": {
        "plain": ["A1<end_of_turn>"],
        "system": ["A1<end_of_turn>"],
        "turns": ["A1<end_of_turn>", "A2<end_of_turn>"],
        "tools": "roles must alternate",
        "inline": ["<think>\nR1\n</think>\n\nA1<end_of_turn>", "<think>\nR2\n</think>\n\nA2<end_of_turn>"],
    },
    "LAST_QUESTION": {
        "plain": [" A1</s>"],
        "system": [" A1</s>"],
        "turns": [" A1</s>", " A2</s>"],
        "tools": [f"[CALLS]{JSON_CALL}abcdef123</s>", " A1</s>", " A2</s>"],
        "reasoning": "leaves out reasoning .'R1'",
    },
    "OPEN_BLOCK": {
        "plain": ["A1</s>"],
        "turns": ["A1</s>", "A2</s>"],
        "tools": [f"<|call_begin|>find_rain\n```json\n{OSLO}\n```<|call_end|></s>", "A1</s>", "A2</s>"],
        "reasoning": "leaves out reasoning .'R1'",
        "inline": "leaves out reasoning .'R1'",
        "spelled": ["A<|im_end|>1</s>", "A2</s>"],
    },
    "MARKED": {
        "plain": ["A1<|im_end|>"],
        "turns": ["A1<|im_end|>", "A2<|im_end|>"],
        "tools": [f"{JSON_CALL}<|im_end|>", "A1<|im_end|>", "A2<|im_end|>"],
        "reasoning": ["<think>R1</think>A1<|im_end|>", "<think>R2</think>A2<|im_end|>"],
        "spelled": ["A<|im_end|>1<|im_end|>", "A2<|im_end|>"],
    },
    "HEADERS_ALONE": {"plain": "message 2: .* no stop token", "turns": "message 2: .* no stop token"},
    "PARTS": {"plain": ["A1</s>"], "system": ["A1</s>"], "turns": ["A1</s>", "A2</s>"]},
}
CASES = [(template, record) for template, records in EXPECTED.items() for record in records]


@pytest.mark.parametrize(("template", "record"), CASES, ids=lambda value: value)
def test_spans_are_the_assistants_text_and_its_stop_token(template: str, record: str):
    source = CHATML if template == "CHATML" else TEMPLATES[template]
    messages, tools = RECORDS[record]
    chat = ChatTemplate(source, SPECIAL, CONTROL)
    expected = EXPECTED[template][record]
    if isinstance(expected, str):
        with pytest.raises(RecordError, match=expected):
            chat.render(Conversation(messages, tools), "assistant")
        return
    rendered = chat.render(Conversation(messages, tools), "assistant")
    assert [rendered.text[start:end] for start, end in rendered.loss or []] == expected
    last = chat.render(Conversation(messages, tools), "last_assistant")
    assert [rendered.text[start:end] for start, end in last.loss or []] == expected[-1:]
    again = chat.render(Conversation(messages, tools), "assistant")  # with all frames in the cache
    assert again == rendered


def test_an_empty_answer_is_refused_before_any_template():
    record = {"messages": [say("user", "U1"), say("assistant", " ")]}
    with pytest.raises(RecordError, match="message 2: the assistant turn is empty"):
        parse_record(record, Shape("messages"))


def test_a_mark_that_only_the_tokenizer_knows_ends_a_turn():
    source = "{% for m in messages %}]~b]{{ m.role }}\n{{ m.content }}[e~[\n{% endfor %}"
    source += "{% if add_generation_prompt %}]~b]assistant\n{% endif %}"
    messages, _ = RECORDS["turns"]
    with pytest.raises(RecordError, match="no stop token"):
        ChatTemplate(source, {}).render(Conversation(messages), "assistant")
    rendered = ChatTemplate(source, {}, ControlTokens(("]~b]", "[e~["))).render(Conversation(messages), "assistant")
    assert [rendered.text[start:end] for start, end in rendered.loss or []] == ["A1[e~[", "A2[e~["]


def find_templates() -> list[Path]:
    named = os.environ.get("REDLINE_CHAT_TEMPLATES")
    trl = importlib.util.find_spec("trl")
    places = [Path(named)] if named else [Path(trl.origin).parent / "chat_templates"] if trl and trl.origin else []
    return sorted(path for place in places for path in place.glob("*.jinja"))


@pytest.mark.skipif(not find_templates(), reason="no templates in REDLINE_CHAT_TEMPLATES, and TRL is not installed")
@pytest.mark.parametrize("record", RECORDS)
def test_templates_of_others_train_the_assistants_words_alone_or_refuse(record: str):
    """Every rendered word of the assistant is in a span, no word of others is, and a stop token ends each span."""
    messages, tools = RECORDS[record]
    wrong, trained, others = [], 0, ("U1", "U2", "SYS", "RESULT")
    for path in find_templates():
        chat = ChatTemplate(path.read_text(), SPECIAL, CONTROL, on_dropped="allow")
        try:
            rendered = chat.render(Conversation(messages, tools), "assistant")
        except RecordError:
            continue
        trained += 1
        spans = [rendered.text[start:end] for start, end in rendered.loss or []]
        answers = [message for message in messages if message["role"] == "assistant"]
        said = "".join(spans)
        held = all(answer["content"][-2:] in said for answer in answers if answer["content"])
        if not held or any(word in said for word in others) or spans[-1][-1] not in ">]":
            wrong.append((path.name, spans))
    assert not wrong
    assert trained
