"""Runs a chat template, with each record's calls and reasoning in the form in which that template reads them.

A template is a program of someone else's: whatever it raises is a `RecordError`. Dates that it writes are those of one
moment, so that two renderings of a conversation never differ by the clock.
"""

import json
import re
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

import orjson

from data_prep.parse.kinds import RecordError

CharSpan = tuple[int, int]
Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]] | None

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
PROBED = {"city": "Oslo"}
SAID = "\ue000said\ue001"
CITY = {"type": "object", "properties": {"city": {"type": "string", "description": "a"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "look", "description": "a", "parameters": CITY}}


class Rendering(NamedTuple):
    """A text, and the ranges that the template itself marks with `{% generation %}`."""

    text: str
    marks: list[CharSpan]


@dataclass(frozen=True)
class Renderer:
    """A Jinja template and the special tokens it may name (`eos_token`, `bos_token`, …)."""

    source: str
    special_tokens: dict[str, str]

    def render(self, messages: Messages, tools: Tools, prompt: bool = False) -> Rendering:
        """Raises RecordError when the template refuses the conversation."""
        try:
            return self._run(messages, tools, prompt, self.takes_parts)
        except Exception as error:  # it may raise anything
            raise RecordError(f"the chat template refuses it ({' '.join(str(error).split())})") from None

    def find_fault(self) -> str | None:
        """Where and why the source is no Jinja; None if it is."""
        from jinja2 import TemplateSyntaxError

        try:
            self._run([{"role": "user", "content": "a"}], None, False, parts=False)
        except TemplateSyntaxError as error:
            return f"line {error.lineno}: {error.message}"
        except Exception:  # it may refuse this conversation and take those of the data
            return None
        return None

    @cached_property
    def marks_turns(self) -> bool:
        """Whether the template has `{% generation %}` marks."""
        return re.search(r"\{%-?\s*generation\s*-?%\}", self.source) is not None

    @cached_property
    def knows_tools(self) -> bool:
        """Whether the template mentions tools."""
        return re.search(r"\btools\b", self.source) is not None

    @cached_property
    def knows_developer(self) -> bool:
        """Whether the template mentions the role developer."""
        asked = [{"role": "developer", "content": SAID}, {"role": "user", "content": "a"}]
        try:
            return SAID in self.render(asked, self.probed_tools).text
        except RecordError:
            return False

    @cached_property
    def probed_tools(self) -> Tools:
        """Those that come with a question of what the template does: none, but for one that renders nothing without."""
        for tools in (None, [TOOL]):
            try:
                self._run([{"role": "user", "content": "a"}], tools, False, parts=False)
            except Exception:
                continue
            return tools
        return None

    def arrange(self, messages: Messages) -> Messages:
        """The messages with arguments as this template takes them, reasoning under `reasoning_content` alone, and what
        a developer says as the system's where the template knows no developer."""
        return [self._arrange(message) for message in messages]

    def _arrange(self, message: dict[str, Any]) -> dict[str, Any]:
        if message.get("tool_calls"):
            message = {**message, "tool_calls": [self._arrange_call(call) for call in message["tool_calls"]]}
        if message["role"] == "developer" and not self.knows_developer:
            message = {**message, "role": "system"}
        if "reasoning" in message or "thinking" in message:
            found = next((message[key] for key in REASONING_KEYS if isinstance(message.get(key), str)), None)
            message = {key: item for key, item in message.items() if key not in REASONING_KEYS}
            return {**message, "reasoning_content": found} if found is not None else message
        return message

    def _arrange_call(self, call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        arguments = function.get("arguments", {})
        if isinstance(arguments, str) and not self.takes_text:
            arguments = _load_object(arguments)
        elif not isinstance(arguments, str) and self.takes_text:
            arguments = json_text(arguments)
        return {**call, "function": {**function, "arguments": arguments}}

    @cached_property
    def takes_text(self) -> bool:
        """Whether arguments are to be JSON text: as an object they are refused, or written as Python writes them."""
        as_object, as_text = self._probe(PROBED), self._probe(json_text(PROBED))
        is_wrong = as_object is None or str(PROBED) in as_object
        return is_wrong and as_text is not None and json_text(PROBED) in as_text

    def _probe(self, arguments: Any) -> str | None:
        call = {"id": "000000000", "type": "function", "function": {"name": "look", "arguments": arguments}}
        asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
        answered = [{"role": "tool", "content": "b", "name": "look", "tool_call_id": "000000000"}]
        for messages in (asked, [*asked, *answered, {"role": "assistant", "content": "c"}]):
            try:
                return self.render(messages, self.probed_tools).text
            except RecordError:
                continue
        return None

    @cached_property
    def takes_parts(self) -> bool:
        """Whether contents are to be lists of parts, as templates of models with eyes want them: texts are refused, or
        not written."""
        messages = [{"role": "user", "content": SAID}]
        try:
            as_text = self._run(messages, self.probed_tools, False, parts=False).text
        except Exception:
            as_text = ""
        try:
            as_parts = "" if SAID in as_text else self._run(messages, self.probed_tools, False, parts=True).text
        except Exception:
            return False
        return SAID in as_parts

    def _run(self, messages: Messages, tools: Tools, prompt: bool, parts: bool) -> Rendering:
        values = {
            "messages": [_spell_out(message, parts) for message in messages],
            "tools": tools,
            "documents": None,
            "add_generation_prompt": prompt,
            "strftime_now": self._now.strftime,
            **self.special_tokens,
        }
        if not self.marks_turns:
            return Rendering(self._compiled.render(values), [])
        blocks: list[str] = []
        marks: list[CharSpan] = []
        with self._compiled.environment.activate_tracker(blocks, marks):
            for block in self._compiled.generate(values):
                blocks.append(block)
        return Rendering("".join(blocks), marks)

    @cached_property
    def _compiled(self) -> Any:
        # Imported here: a store of plain text never pays for it (1 s). It does not import torch.
        from transformers.utils import chat_template_utils

        return chat_template_utils._compile_jinja_template(self.source)  # pyright: ignore[reportPrivateUsage]

    @cached_property
    def _now(self) -> datetime:
        return datetime.now()


def _spell_out(message: dict[str, Any], parts: bool) -> dict[str, Any]:
    """Reasoning under each name that templates know, and the content as a list of parts where they want that."""
    if reasoning := message.get("reasoning_content"):
        message = {**message, "reasoning": reasoning, "thinking": reasoning}
    return {**message, "content": [{"type": "text", "text": message.get("content", "")}]} if parts else message


def _load_object(text: str) -> Any:
    try:
        found = orjson.loads(text) if text else {}
    except orjson.JSONDecodeError:
        return text
    return found if isinstance(found, dict | list) else text


def json_text(value: Any) -> str:
    """JSON as `json.dumps` and the `tojson` of templates write it, with a space behind `:` and `,`."""
    return json.dumps(value, ensure_ascii=False)
