"""Renders conversations with a chat template; reports the characters that carry loss and the content left out.

The template is the tokenizer's own, a Jinja file, or ChatML. Loss falls on what the model generates: each assistant
turn from the end of the generation prompt to its stop token inclusive. `turns` finds and checks these ranges. A turn
that cannot be found is an error, so a loss mask is never wrong.

Conversations share a *frame* if they have the same roles, fields, tools, and names and keys of calls. A frame is
rendered and analysed once, with a sentinel for each text. If a record's text is that of its frame with the record's own
texts in it, its turns are where the frame has them, and the record costs one rendering (0.05 to 0.3 ms, depending on
the template). Any other record is analysed alone (`ReplacedSource`), at about three renderings a message.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import orjson

from data_prep.options import OnDropped, SpecialInText, TrainOn
from data_prep.parse.kinds import Conversation, RecordError
from data_prep.render.chatml import CHATML
from data_prep.render.control_tokens import ControlTokens
from data_prep.render.dropped import (
    LEFT_OUT_BY_DESIGN,
    Missing,
    find_missing_calls,
    find_missing_leaves,
    find_missing_parts,
    find_missing_tools,
    shorten,
)
from data_prep.render.leaves import Leaf, Marked, mark_leaves
from data_prep.render.located import MarkedSource, ReplacedSource, Source, fit
from data_prep.render.rendering import CharSpan, Renderer, Tools, json_text
from data_prep.render.turns import Closing, Turn, find_closing

MAX_FRAMES = 256


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation.

    loss: character ranges [start, end) that carry loss; None means all of the text.
    dropped: content of the conversation that the text does not contain, as one example for each kind.
    spelled: ranges of the text that are special tokens written in the conversation itself.
    """

    text: str
    loss: list[CharSpan] | None
    dropped: dict[str, str] = field(default_factory=dict)
    spelled: list[CharSpan] = field(default_factory=list)


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template with the options that decide what it renders.

    special_tokens: those that the template can refer to by name (`eos_token`, `bos_token`, …).
    control: all special tokens of the tokenizer.
    on_dropped: what to do when the template leaves out content.
    in_text: what to do with special tokens that are written in a message.
    with_tools: the template for conversations with tools; None: this one.
    """

    source: str
    special_tokens: dict[str, str]
    control: ControlTokens = ControlTokens(())
    on_dropped: OnDropped = "refuse"
    in_text: SpecialInText = "text"
    name: str = "the chat template"
    with_tools: "ChatTemplate | None" = None

    def render(self, conversation: Conversation, train_on: TrainOn) -> Rendered:
        """Render a conversation.

        Raises RecordError when the template refuses it or leaves out content that must be kept, when a turn cannot be
        found, or when it contains a special token that `in_text` refuses.
        """
        if conversation.tools and self.with_tools:
            return self.with_tools.render(conversation, train_on)
        token = None if self.in_text == "token" else self._find_spelled(conversation)
        if token is None:
            return self._render(conversation, train_on)
        if self.in_text == "refuse":
            raise RecordError(
                f"it contains the special token {token!r}, which data.special_tokens_in_text: refuse does not allow"
            )
        hidden = Conversation(
            self.control.hide(conversation.messages), self.control.hide(conversation.tools), conversation.without_loss
        )
        try:
            rendered = self._render(hidden, train_on)
        except RecordError as error:
            raise RecordError(self.control.reveal_message(str(error))) from None
        text, spelled = self.control.reveal(rendered.text)
        if text != self.renderer.render(self.renderer.arrange(conversation.messages), conversation.tools).text:
            raise RecordError(f"the chat template changes the special token {token!r}, which a message contains")
        dropped = {kind: self.control.reveal(example)[0] for kind, example in rendered.dropped.items()}
        return replace(rendered, text=text, dropped=dropped, spelled=spelled)

    def _find_spelled(self, conversation: Conversation) -> str | None:
        """The first special token in the texts, calls and tools of a conversation."""
        pattern = self.control.pattern
        if pattern is None:
            return None
        texts = (item for message in conversation.messages for item in message.values() if isinstance(item, str))
        calls = [message["tool_calls"] for message in conversation.messages if message.get("tool_calls")]
        found = next((found for text in texts if (found := pattern.search(text))), None)
        if found is None and (calls or conversation.tools):
            found = pattern.search(json_text([calls, conversation.tools]))
        return found[0] if found else None

    def _render(self, conversation: Conversation, train_on: TrainOn) -> Rendered:
        messages, tools = self.renderer.arrange(conversation.messages), conversation.tools
        text, _ = self.renderer.render(messages, tools)
        marked = mark_leaves(messages)
        analysis = self._find_frame(marked, tools)
        fitted = analysis and fit(analysis.source.whole(), marked.leaves, text)
        if analysis is None or fitted is None:
            analysis = _Analysis(ReplacedSource(self.renderer, messages, marked.leaves, tools), self._closing)
        dropped = analysis.name_dropped(marked.leaves)
        self._check_dropped(dropped)
        if train_on == "all":
            return Rendered(text, None, dropped)
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        chosen = turns[-1:] if train_on == "last_assistant" else turns
        spans = [span for i in chosen if i not in conversation.without_loss for span in analysis.turn(i).spans]
        return Rendered(text, [fitted.move(span) for span in spans] if fitted else spans, dropped)

    def _check_dropped(self, dropped: dict[str, str]) -> None:
        kinds = [kind for kind in dropped if kind not in LEFT_OUT_BY_DESIGN]
        if not kinds or self.on_dropped == "allow":
            return
        example = shorten(dropped[kinds[0]])
        ways = "set data.on_dropped_content: allow to train without it"
        if self.source != CHATML and not kinds[0].startswith("field "):
            ways += ", or data.chat_template: chatml to keep it"
        raise RecordError(f"{self.name} leaves out {' and '.join(kinds)} ({example!r}): {ways}")

    @cached_property
    def renderer(self) -> Renderer:
        """Runs the template, which is compiled at its first use in a process."""
        return Renderer(self.source, self.special_tokens)

    def find_fault(self) -> str | None:
        """Line and reason of a Jinja syntax error in the source; None if there is none."""
        return self.renderer.find_fault()

    def _find_frame(self, marked: Marked, tools: Tools) -> "_Analysis | None":
        """The analysis of the conversation's frame; None if the template refuses sentinels."""
        key = orjson.dumps([marked.messages, tools])
        if key not in self._frames:
            if len(self._frames) == MAX_FRAMES:
                self._frames.clear()
            analysis = _Analysis(MarkedSource(self.renderer, marked.messages, marked.leaves, tools), self._closing)
            self._frames[key] = analysis if analysis.is_rendered else None
        return self._frames[key]

    @cached_property
    def _closing(self) -> Closing:
        return find_closing(self.renderer, self.control.tokens)

    @cached_property
    def _frames(self) -> dict[bytes, "_Analysis | None"]:
        return {}


class _Analysis:
    """Turns and dropped content of a source, each computed at its first use."""

    def __init__(self, source: Source, closing: Closing):
        self.source, self._closing = source, closing
        self._turns: dict[int, Turn] = {}

    def turn(self, number: int) -> Turn:
        if number not in self._turns:
            self._turns[number] = Turn(self.source, number, self._closing)
        return self._turns[number]

    @cached_property
    def is_rendered(self) -> bool:
        try:
            self.source.whole()
        except RecordError:
            return False
        return True

    def name_dropped(self, leaves: list[Leaf]) -> dict[str, str]:
        """One example for each kind of dropped content; `leaves` are the record's own."""
        found: dict[str, str] = {}
        for kind, what in self._missing:
            found.setdefault(kind, leaves[what].text if isinstance(what, int) else what)
        return found

    @cached_property
    def _missing(self) -> list[Missing]:
        return list(self._find_missing())

    def _find_missing(self) -> Iterator[Missing]:
        source = self.source
        for number, message in enumerate(source.messages):
            if message.get("tool_calls"):
                yield from find_missing_calls(message["tool_calls"], self._text_of(number))
        yield from find_missing_leaves(source)
        if isinstance(source, ReplacedSource):
            yield from find_missing_parts(source)
        yield from find_missing_tools(source.tools, source.whole().text, source.renderer.knows_tools)

    def _text_of(self, number: int) -> str:
        """Text of a turn, or of the whole conversation if the turn cannot be found."""
        text = self.source.whole().text
        try:
            begin, end = self.turn(number).bounds
        except RecordError:
            return text
        return text[begin:end]
