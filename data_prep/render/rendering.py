"""Runs a chat template, and passes calls and reasoning to it in the form that it expects.

A template is a third-party program: any exception in it becomes a `RecordError`. Its clock is fixed, so two renderings
of a conversation never differ by the date that the template writes.
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
    """A text, and the character ranges [start, end) of the template's `{% generation %}` blocks."""

    text: str
    marks: list[CharSpan]


@dataclass(frozen=True)
class Renderer:
    """A Jinja template and the special tokens that it can refer to by name (`eos_token`, `bos_token`, …)."""

    source: str
    special_tokens: dict[str, str]

    def render(self, messages: Messages, tools: Tools, prompt: bool = False) -> Rendering:
        """Render messages; `prompt` adds the generation prompt. Raises RecordError when the template raises."""
        try:
            return self._run(messages, tools, prompt, self.takes_parts)
        except Exception as error:  # it may raise anything
            raise RecordError(f"the chat template refuses it ({' '.join(str(error).split())})") from None

    def find_fault(self) -> str | None:
        """Line and reason of a Jinja syntax error in the source; None if there is none."""
        from jinja2 import TemplateSyntaxError

        try:
            self._run([{"role": "user", "content": "a"}], None, False, parts=False)
        except TemplateSyntaxError as error:
            return f"line {error.lineno}: {error.message}"
        except Exception:  # it may refuse this conversation and still render those of the data
            return None
        return None

    @cached_property
    def marks_turns(self) -> bool:
        """Whether the template has `{% generation %}` blocks."""
        return re.search(r"\{%-?\s*generation\s*-?%\}", self.source) is not None

    @cached_property
    def knows_tools(self) -> bool:
        """Whether the template mentions tools."""
        return re.search(r"\btools\b", self.source) is not None

    @cached_property
    def knows_developer(self) -> bool:
        """Whether the template renders messages of the role developer."""
        asked = [{"role": "developer", "content": SAID}, {"role": "user", "content": "a"}]
        try:
            return SAID in self.render(asked, self.probed_tools).text
        except RecordError:
            return False

    @cached_property
    def probed_tools(self) -> Tools:
        """Tools to pass in probes of the template: None, unless it fails without tools."""
        for tools in (None, [TOOL]):
            try:
                self._run([{"role": "user", "content": "a"}], tools, False, parts=False)
            except Exception:
                continue
            return tools
        return None

    def arrange(self, messages: Messages) -> Messages:
        """Return the messages in the form that this template expects.

        Arguments of calls are objects or JSON text, reasoning is only under `reasoning_content`, and developer messages
        become system messages if the template does not render the role developer.
        """
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
        """Whether arguments must be JSON text: given an object, the template fails or writes its Python repr."""
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
        """Whether contents must be lists of parts: the template fails on a text, or does not write it.

        Templates of vision models need this.
        """
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
        # Imported here because it takes 1 s, which a store of plain text need not wait for. It does not import torch.
        from transformers.utils import chat_template_utils

        return chat_template_utils._compile_jinja_template(self.source)  # pyright: ignore[reportPrivateUsage]

    @cached_property
    def _now(self) -> datetime:
        return datetime.now()


def _spell_out(message: dict[str, Any], parts: bool) -> dict[str, Any]:
    """Add reasoning under every key that templates read; make the content a list of parts if `parts`."""
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
    """Write JSON as `json.dumps` and the `tojson` of templates do, with a space after `:` and `,`."""
    return json.dumps(value, ensure_ascii=False)
