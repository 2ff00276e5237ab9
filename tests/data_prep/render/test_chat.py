"""Compares loss masks with a hand-written reference for each format.

The reference writes every turn without a chat template, encodes header, body and tail separately, and marks the body.
"""

from collections.abc import Callable

import numpy as np
import pytest
from transformers import AutoTokenizer

from data_prep.encode.loss_runs import find_loss_runs
from data_prep.encode.tokenizer import LoadedTokenizer
from data_prep.parse.kinds import Conversation, RecordError
from data_prep.render.chat import ChatTemplate, Rendered
from data_prep.render.chatml import CHATML

# Each piece ends with a special token or a word, so encoding the pieces separately gives the same tokens.
Piece = tuple[str, bool]
PLAIN_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As in Qwen2.5: calls follow the content; consecutive tool results form one user turn.
QWEN = (
    "{%- for m in messages %}"
    "{%- if m.role == 'tool' %}"
    "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}"
    "{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}"
    "{%- elif m.role == 'assistant' and m.tool_calls %}{{- '<|im_start|>assistant' }}"
    "{%- if m.content %}{{- '\n' + m.content }}{%- endif %}"
    "{%- for c in m.tool_calls %}{{- '\n<tool_call>\n' + c.function.name + ' ' }}"
    "{{- c.function.arguments | tojson }}{{- '\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
# As in Qwen3: reasoning only in the last turn, an empty reasoning block in the prompt.
THINKING = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}"
    "{%- set content = m.content.split('</think>')[-1].lstrip('\n') if m.role == 'assistant' else m.content %}"
    "{%- if m.role == 'assistant' and loop.last %}"
    "{%- set thought = m.content.split('</think>')[0].split('<think>')[-1] if '</think>' in m.content else '\n' %}"
    "{{- '<think>' + thought + '\n</think>\n\n' }}{%- endif %}"
    "{{- content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{%- endif %}"
)
LLAMA3 = (
    "{%- for m in messages %}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{{- m.content | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
MISTRAL = (  # no generation prompt at all
    "{%- for m in messages %}{%- if m.role == 'user' %}{{- '[INST] ' + m.content + '[/INST]' }}"
    "{%- elif m.tool_calls %}{{- '[TOOL_CALLS]' + m.tool_calls[0].function | tojson + eos_token }}"
    "{%- elif m.role == 'tool' %}{{- '[RESULTS]' + m.content + '[/RESULTS]' }}"
    "{%- elif m.role == 'assistant' %}{{- m.content + eos_token }}"
    "{%- else %}{{- raise_exception('only user and assistant') }}{%- endif %}{%- endfor %}"
)


def reference_chatml(messages: list[dict]) -> list[Piece]:
    pieces: list[Piece] = []
    for m in messages:
        is_mine = m["role"] == "assistant"
        pieces += [(f"<|im_start|>{m['role']}\n", False), (f"{m['content']}<|im_end|>", is_mine), ("\n", False)]
    return pieces


def reference_llama3(messages: list[dict]) -> list[Piece]:
    pieces: list[Piece] = []
    for m in messages:
        header = f"<|start_header_id|>{m['role']}<|end_header_id|>\n\n"
        pieces += [(header, False), (m["content"].strip() + "<|eot_id|>", m["role"] == "assistant")]
    return pieces


def reference_mistral(messages: list[dict]) -> list[Piece]:
    return [
        (m["content"] + "<|endoftext|>", True) if m["role"] == "assistant" else (f"[INST] {m['content']}[/INST]", False)
        for m in messages
    ]


def turns(*contents: str, system: str | None = None) -> list[dict]:
    messages = [{"role": "system", "content": system}] if system else []
    return messages + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


CASES: list[tuple[str, Callable[[list[dict]], list[Piece]], list[dict]]] = [
    (CHATML, reference_chatml, turns("what is two plus two?", "four, of course.")),
    (CHATML, reference_chatml, turns("hello", "hello", "hello", "hello", system="the cat")),
    (PLAIN_CHATML, reference_chatml, turns("what is two plus two?", "four, of course.")),
    (PLAIN_CHATML, reference_chatml, turns("hello", "hello", "hello", "hello", system="the cat")),
    (PLAIN_CHATML, reference_chatml, turns("assistant\n", "assistant", "the", "<|im_start|>assistant\nnested, é 猫")),
    (LLAMA3, reference_llama3, turns("what is it?", " of course ", "and?", "four", system="said")),
    (MISTRAL, reference_mistral, turns("what is it?", "of course", "and?", "four")),
]


def encode(pieces: list[Piece], tokenizer: LoadedTokenizer) -> tuple[list[int], list[bool]]:
    ids, mask = [], []
    for text, has_loss in pieces:
        piece = tokenizer.backend.encode(text, add_special_tokens=False).ids
        ids += piece
        mask += [has_loss] * len(piece)
    return ids, mask


def render_mask(
    template: str, conversation: Conversation, tokenizer: LoadedTokenizer, train_on: str = "assistant"
) -> tuple[list[int], list[bool]]:
    rendered = ChatTemplate(template, tokenizer.special_tokens).render(conversation, train_on)  # type: ignore[arg-type]
    encoding = tokenizer.backend.encode(rendered.text, add_special_tokens=False)
    mask = np.zeros(len(encoding.ids), bool)
    for start, end in find_loss_runs(encoding.offsets, rendered.loss or []).reshape(-1, 2):
        mask[start:end] = True
    return encoding.ids, mask.tolist()


def spans_of(rendered: Rendered) -> list[str]:
    return [rendered.text[start:end] for start, end in rendered.loss or []]


@pytest.mark.parametrize(("template", "reference", "messages"), CASES)
def test_loss_is_on_assistant_turns_and_their_end_exactly(template, reference, messages, tokenizer: LoadedTokenizer):
    assert render_mask(template, Conversation(messages), tokenizer) == encode(reference(messages), tokenizer)


def test_last_assistant_and_turns_that_the_data_excludes(tokenizer: LoadedTokenizer):
    messages = turns("hello", "one", "hello", "two")
    for template in (CHATML, PLAIN_CHATML):
        ids, mask = render_mask(template, Conversation(messages), tokenizer, "last_assistant")
        assert tokenizer.backend.decode([i for i, m in zip(ids, mask, strict=True) if m], False) == "two<|im_end|>"
        ids, mask = render_mask(template, Conversation(messages, without_loss={3}), tokenizer)
        assert tokenizer.backend.decode([i for i, m in zip(ids, mask, strict=True) if m], False) == "one<|im_end|>"


CALLS = [{"type": "function", "function": {"name": "search", "arguments": {"city": "Paris", "n": n}}} for n in (1, 2)]
TOOL_MESSAGES = [
    {"role": "user", "content": "weather in Paris"},
    {"role": "assistant", "content": "", "tool_calls": CALLS[:1]},
    {"role": "tool", "content": "four"},
    {"role": "assistant", "content": "and", "tool_calls": CALLS},
    {"role": "tool", "content": "two"},
    {"role": "tool", "content": "search"},
    {"role": "assistant", "content": "of course"},
]


def call(n: int) -> str:
    return f'<tool_call>\nsearch {{"city": "Paris", "n": {n}}}\n</tool_call>'


def test_tool_calls_carry_loss_and_results_do_not(tokenizer: LoadedTokenizer):
    start, end = "<|im_start|>", "<|im_end|>"
    reference = [
        (f"{start}user\nweather in Paris{end}\n{start}assistant\n", False),
        (call(1) + end, True),
        (f"\n{start}user\n<tool_response>\nfour\n</tool_response>{end}\n{start}assistant\n", False),
        (f"and\n{call(1)}\n{call(2)}{end}", True),
        (f"\n{start}user\n<tool_response>\ntwo\n</tool_response>", False),
        (f"\n<tool_response>\nsearch\n</tool_response>{end}\n{start}assistant\n", False),
        ("of course" + end, True),
        ("\n", False),
    ]
    assert render_mask(QWEN, Conversation(TOOL_MESSAGES), tokenizer) == encode(reference, tokenizer)


def test_reasoning_carries_loss_and_the_empty_block_of_the_prompt_does_not(tokenizer: LoadedTokenizer):
    start, end = "<|im_start|>", "<|im_end|>"
    answers = [f"<think>\n{thought}\n</think>\n\nfour" for thought in ("said it", "hello")]
    thought = Conversation(turns("two?", answers[0], "and?", answers[1]))
    reference = [
        (f"{start}user\ntwo?{end}\n{start}assistant\n", False),
        ("four" + end, True),  # the template leaves out earlier reasoning
        (f"\n{start}user\nand?{end}\n{start}assistant\n", False),
        ("<think>\nhello\n\n</think>\n\nfour" + end, True),
        ("\n", False),
    ]
    assert render_mask(THINKING, thought, tokenizer) == encode(reference, tokenizer)
    plain = Conversation(turns("two?", "four"))
    reference = [(f"{start}user\ntwo?{end}\n{start}assistant\n<think>\n\n</think>\n\n", False), ("four" + end, True)]
    assert render_mask(THINKING, plain, tokenizer) == encode([*reference, ("\n", False)], tokenizer)


@pytest.mark.parametrize("template", [CHATML, PLAIN_CHATML, QWEN, LLAMA3])
def test_text_is_what_transformers_renders(template: str, tokenizer: LoadedTokenizer):
    hf = AutoTokenizer.from_pretrained(tokenizer.directory)
    tools = [{"type": "function", "function": {"name": "search", "parameters": {}}}]
    expected = hf.apply_chat_template(TOOL_MESSAGES, tools=tools, chat_template=template, tokenize=False)
    rendered = ChatTemplate(template, tokenizer.special_tokens, on_dropped="allow").render(
        Conversation(TOOL_MESSAGES, tools), "all"
    )
    assert rendered.text == expected
    assert rendered.loss is None


def test_shipped_template_agrees_with_transformers_assistant_mask(tokenizer: LoadedTokenizer):
    hf = AutoTokenizer.from_pretrained(tokenizer.directory)
    messages = turns("what is it?", "of course", "and?", "four", system="said")
    out = hf.apply_chat_template(messages, chat_template=CHATML, return_assistant_tokens_mask=True, return_dict=True)
    ids, mask = render_mask(CHATML, Conversation(messages), tokenizer)
    assert ids == out["input_ids"]
    assert mask == [bool(m) for m in out["assistant_masks"]]


def test_without_a_generation_prompt_a_call_is_the_turn_from_its_first_character(tokenizer: LoadedTokenizer):
    reference = [
        ("[INST] weather in Paris[/INST]", False),
        ('[TOOL_CALLS]{"name": "search", "arguments": {"city": "Paris", "n": 1}}<|endoftext|>', True),
        ("[RESULTS]four[/RESULTS]", False),
        ("of course<|endoftext|>", True),
    ]
    messages = [*TOOL_MESSAGES[:3], TOOL_MESSAGES[-1]]
    rendered = ChatTemplate(MISTRAL, tokenizer.special_tokens).render(Conversation(messages), "assistant")
    assert rendered.text == "".join(piece for piece, _ in reference)
    assert spans_of(rendered) == [piece for piece, has_loss in reference if has_loss]


def test_a_turn_that_does_not_begin_with_the_prompt_is_not_taken_from_an_earlier_one(tokenizer: LoadedTokenizer):
    template = PLAIN_CHATML.replace("{{ m.role }}", "{{ 'caller' if m.content == 'two' else m.role }}")
    conversation = Conversation(turns("hello", "one", "hello", "two"))
    with pytest.raises(RecordError, match="message 4: the chat template does not begin it with"):
        ChatTemplate(template, tokenizer.special_tokens).render(conversation, "assistant")


def test_a_template_that_refuses_or_hides_a_turn_is_an_error(tokenizer: LoadedTokenizer):
    special = tokenizer.special_tokens
    with pytest.raises(RecordError, match="refuses it .only user and assistant"):
        ChatTemplate(MISTRAL, special).render(Conversation(turns("a", "b", system="s")), "assistant")
    hiding = "{% for m in messages %}{{ m.role }}{% endfor %}"
    with pytest.raises(RecordError, match="leaves out content .'a'.*chatml to keep it"):
        ChatTemplate(hiding, special).render(Conversation(turns("a", "b")), "assistant")


CALL = {"type": "function", "function": {"name": "find_weather", "arguments": {"city": "Oslo"}}}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (
            [*turns("hello", "looking")[:1], {"role": "assistant", "content": "", "tool_calls": [CALL]}],
            "leaves out tool calls and arguments",
        ),
        ([{"role": "developer", "content": "be brief"}, *turns("hi", "yes")], "leaves out system .'be brief'"),
        ([{"role": "system", "content": "be brief"}, *turns("hi", "yes")], "leaves out system .'be brief'"),
    ],
)
def test_a_template_that_leaves_out_what_answers_depend_on_is_an_error(tokenizer: LoadedTokenizer, messages, reason):
    template = ChatTemplate(
        PLAIN_CHATML.replace("{{ m.content }}", "{{ m.content if m.role in ('user', 'assistant') }}"),
        tokenizer.special_tokens,
    )
    with pytest.raises(RecordError, match=reason):
        template.render(Conversation(messages), "assistant")


def test_chatml_writes_reasoning_before_the_answer(tokenizer: LoadedTokenizer):
    answer = {"role": "assistant", "content": "four", "reasoning_content": "two and two"}
    rendered = ChatTemplate(CHATML, tokenizer.special_tokens).render(
        Conversation([{"role": "user", "content": "q"}, answer]), "assistant"
    )
    assert spans_of(rendered) == ["<think>\ntwo and two\n</think>\n\nfour<|im_end|>"]
