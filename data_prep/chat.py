"""Conversations to text through a chat template, with the exact characters that carry loss.

The template is the tokenizer's own, a Jinja file, or ChatML (`CHATML`, shipped). Loss falls on what the model has to
write: from after the generation prompt to the end-of-turn mark inclusive, for each assistant turn.

How a turn is found in the rendered text, in an order that holds for any template:
1. Templates that mark it with `{% generation %}` say it themselves.
2. Otherwise what the template writes around the contents is read off a rendering in which each is a sentinel, once for
   each sequence of roles. Where the contents, put back in, give the text to the letter, their places are known.
3. Where they do not (the template looks into contents, or there are tool calls), the conversation is rendered again
   with the content of this one turn (or, without content, its tool calls) replaced by a sentinel. What differs is the
   turn's own text: no guess at roles or at what the template does to earlier turns.
From there the start goes back to the end of the generation prompt (of a template without one: to the end of the turns
before), which takes in reasoning blocks and tool calls; the end goes on through the template's end-of-turn mark.
A turn that cannot be found is an error, never a wrong mask.

Costs one rendering (0.05 to 0.3 ms, by template) where 1 or 2 holds, and one more for each assistant turn with 3.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, cast

import orjson

from data_prep.kinds import Conversation, RecordError
from data_prep.options import TrainOn

CHATML = (
    "{%- if tools %}{{- '<|im_start|>system\n' }}"
    "{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}"
    "{{- '# Tools\n\nYou may call these functions:\n<tools>' }}"
    "{%- for tool in tools %}{{- '\n' + tool | tojson }}{%- endfor %}"
    "{{- '\n</tools>\n\nA call is a JSON object within <tool_call></tool_call>.<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if not (loop.first and tools and message.role == 'system') %}"
    "{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' %}{%- generation %}"
    "{%- if message.reasoning_content %}{{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{%- endif %}"
    "{{- message.content }}"
    "{%- for call in message.tool_calls or [] %}"
    "{%- if message.content or not loop.first %}{{- '\n' }}{%- endif %}"
    "{{- '<tool_call>\n' + call.function | tojson + '\n</tool_call>' }}{%- endfor %}"
    "{{- '<|im_end|>' }}{%- endgeneration %}{{- '\n' }}"
    "{%- else %}{{- message.content + '<|im_end|>\n' }}{%- endif %}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
SENTINEL = "\ue000REDLINE\ue001"  # private-use characters: no text begins or ends with them
NUMBERED = "\ue000REDLINE{}\ue001"
MAX_FRAMES = 1024
CharSpan = tuple[int, int]


PROMPT_ROLES = ("system", "developer", "user")


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template and the special tokens it may name (`eos_token`, `bos_token`, …)."""

    source: str
    special_tokens: dict[str, str]

    def render(self, conversation: Conversation, train_on: TrainOn) -> tuple[str, list[CharSpan] | None]:
        """Text of a conversation, and the character ranges that carry loss (None: all of it).

        Raises RecordError when the template refuses the conversation or a turn cannot be found in its output.
        """
        text, marked = self._render(conversation.messages, conversation.tools)
        _check_prompts(conversation.messages, text)
        if train_on == "all":
            return text, None
        turns = [i for i, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        if self.marks_turns:
            if len(marked) != len(turns):
                raise RecordError(f"the chat template marks {len(marked)} of {len(turns)} assistant turns")
            spans = dict(zip(turns, marked, strict=True))
        else:
            contents = self._find_contents(conversation, text) or {}
            spans = {turn: self._find_turn(conversation, turn, text, contents.get(turn)) for turn in turns}
        for turn in turns:
            _check_calls(turn, conversation.messages[turn], text[slice(*spans[turn])])
        chosen = turns[-1:] if train_on == "last_assistant" else turns
        return text, [spans[turn] for turn in chosen if turn not in conversation.without_loss]

    @cached_property
    def marks_turns(self) -> bool:
        return re.search(r"\{%-?\s*generation\s*-?%\}", self.source) is not None

    def find_fault(self) -> str | None:
        """Where and why the source is no Jinja; None if it is."""
        from jinja2 import TemplateSyntaxError

        try:
            self._run([{"role": "user", "content": "a"}], None, False)
        except TemplateSyntaxError as error:
            return f"line {error.lineno}: {error.message}"
        except Exception:  # it may refuse this conversation and take those of the data
            return None
        return None

    def _render(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, prompt: bool = False
    ) -> tuple[str, list[CharSpan]]:
        try:
            return self._run(messages, tools, prompt)
        except Exception as error:  # a template is a program of someone else's: it may raise anything
            raise RecordError(f"the chat template refuses it ({' '.join(str(error).split())})") from None

    def _run(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, prompt: bool
    ) -> tuple[str, list[CharSpan]]:
        # Imported here: a store of plain text never pays for it (1 s). It does not import torch.
        from transformers.utils.chat_template_utils import render_jinja_template

        texts, spans = cast(Any, render_jinja_template)(
            [messages],
            tools=tools,
            chat_template=self.source,
            return_assistant_tokens_mask=self.marks_turns,
            add_generation_prompt=prompt,
            **self.special_tokens,
        )
        return texts[0], spans[0] if spans else []

    @cached_property
    def _marks(self) -> tuple[str, str]:
        """The generation prompt and the end-of-turn mark, read off a two-turn conversation."""
        question = [{"role": "user", "content": "a"}]
        asked, _ = self._render(question, None)
        prompted, _ = self._render(question, None, prompt=True)
        answered, _ = self._render([*question, {"role": "assistant", "content": SENTINEL}], None)
        header = prompted[len(asked) :] if prompted.startswith(asked) else ""
        return header, answered.rpartition(SENTINEL)[2].strip()

    def _find_contents(self, conversation: Conversation, text: str) -> dict[int, CharSpan] | None:
        """Where the content of each message stands, if the text is nothing but contents in a frame for their roles."""
        messages = conversation.messages
        if any(message.keys() != {"role", "content"} for message in messages):
            return None
        frame = self._find_frame(tuple(message["role"] for message in messages), conversation.tools)
        if frame is None:
            return None
        for contents in ([m["content"] for m in messages], [m["content"].strip() for m in messages]):
            pieces = [frame[0], *(piece for pair in zip(contents, frame[1:], strict=True) for piece in pair)]
            if "".join(pieces) == text:
                ends = list(accumulate(map(len, pieces)))
                return {i: (ends[2 * i], ends[2 * i + 1]) for i in range(len(messages))}
        return None

    def _find_frame(self, roles: tuple[str, ...], tools: list[dict[str, Any]] | None) -> list[str] | None:
        """What the template writes before, between and after contents; None if not each of them once, in order."""
        key = (roles, orjson.dumps(tools))
        if key not in self._frames:
            if len(self._frames) == MAX_FRAMES:
                self._frames.clear()
            messages = [{"role": role, "content": NUMBERED.format(i)} for i, role in enumerate(roles)]
            try:
                text, _ = self._render(messages, tools)
            except RecordError:
                text = ""
            pieces = re.split(NUMBERED.format(r"(\d+)"), text)
            in_order = pieces[1::2] == [str(i) for i in range(len(roles))]
            self._frames[key] = pieces[::2] if in_order else None
        return self._frames[key]

    @cached_property
    def _frames(self) -> dict[tuple[tuple[str, ...], bytes], list[str] | None]:
        return {}

    def _find_turn(self, conversation: Conversation, turn: int, text: str, content: CharSpan | None) -> CharSpan:
        prompt, end_mark = self._marks
        first, last = content or self._find_difference(conversation, turn, text)
        if prompt:
            # A reasoning template's prompt holds an empty think block; a turn with reasoning does not begin with it.
            headers = {prompt, prompt.partition("<think>")[0] or prompt}
            found, length = max((text.rfind(header, 0, first), len(header)) for header in headers)
            begin = found + length
            if found < 0 or (end_mark and end_mark in text[begin:first]):  # none, or that of an earlier turn
                raise RecordError(f"message {turn + 1}: the chat template does not begin it with {prompt!r}")
        else:
            before, _ = self._render(conversation.messages[:turn], conversation.tools)
            begin = len(before)
            if not text.startswith(before) or begin > first:
                raise RecordError(f"message {turn + 1}: the chat template changes what stands before it")
        end = text.find(end_mark, last)
        if end < 0:
            raise RecordError(f"message {turn + 1}: the chat template does not end it with {end_mark!r}")
        return begin, end + len(end_mark)

    def _find_difference(self, conversation: Conversation, turn: int, text: str) -> CharSpan:
        for other in _with_sentinel(conversation.messages, turn):
            try:
                changed, _ = self._render(other, conversation.tools)
            except RecordError:
                continue
            if SENTINEL in changed:
                first = _count_common_prefix(text, changed)
                return first, len(text) - _count_common_prefix(text[first:][::-1], changed[first:][::-1])
        raise RecordError(f"message {turn + 1}: not found in the chat template's output: use chat_template: chatml")


def _check_prompts(messages: list[dict[str, Any]], text: str) -> None:
    """Raises RecordError for what is said to the model and not in the text: answers would be learnt without it."""
    for number, message in enumerate(messages, 1):
        if message["role"] in PROMPT_ROLES and message["content"].strip() not in text:
            raise RecordError(f"message {number}: the chat template leaves out what the {message['role']} says")


def _check_calls(turn: int, message: dict[str, Any], written: str) -> None:
    """Raises RecordError for a call that the turn does not hold: the model would learn to stop instead."""
    for call in message.get("tool_calls") or ():
        name = call["function"]["name"]
        if name not in written:
            raise RecordError(f"message {turn + 1}: the chat template leaves out the call of {name!r}")


def _count_common_prefix(one: str, two: str) -> int:
    """Length of the common prefix, by bisection (a loop over characters is 20 times as slow)."""
    low, high = 0, min(len(one), len(two))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == two[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _with_sentinel(messages: list[dict[str, Any]], turn: int) -> list[list[dict[str, Any]]]:
    """The conversation with the content of one turn replaced, and, if it calls tools, with its calls replaced."""
    message = messages[turn]
    variants = [{**message, "content": SENTINEL}]
    if message.get("tool_calls"):
        call = {"type": "function", "function": {"name": SENTINEL, "arguments": {}}}
        variants.append({**message, "tool_calls": [call]})
    return [[*messages[:turn], variant, *messages[turn + 1 :]] for variant in variants]
