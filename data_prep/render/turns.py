"""Finds the characters of an assistant turn, from the end of the generation prompt to the end of its stop token.

A turn is found in two ways, which must agree:
- in the rendering of the whole conversation, where the texts of other messages bound it on both sides;
- on its own, as the difference between the rendering of the messages before it, with the generation prompt, and the
  rendering of the messages up to and including it.

These conditions are checked. A record that breaks one of them is refused with the reason.
- Start: the header is the text between the last text before the turn and the end of the generation prompt. The whole
  rendering has the same header at the same place. One difference is allowed: a prompt may open a reasoning block, or
  write an empty one, that this turn does not have.
- End: the turn on its own ends with a stop token. In the whole rendering the turn ends with the same stop token, or,
  if the template closes the last turn differently, with the one that closes earlier turns.
- Content: the range holds every text of the turn and no text of another message.
- `{% generation %}`, if the template has it, covers every text of the turn and its stop token, and no text of another
  message. If it also covers part of the prompt or white space after the turn, these characters carry no loss.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from data_prep.parse.kinds import RecordError
from data_prep.render.leaves import FOUND, LABEL, mark_leaves
from data_prep.render.located import Located, Place, Source, count_common_prefix, find_opening, make_source
from data_prep.render.rendering import CharSpan, Renderer

SHOWN = 40
OPENED = re.compile(r"<[^<>/]+>\s*$")
EMPTY_BLOCK = re.compile(r"^\s*<[^<>/]*think[^<>]*>\s*</[^<>]*think[^<>]*>\s*", re.IGNORECASE)
REASONING = re.compile(r"[<\[][^<>\[\]]*(think|thought|reason|channel)", re.IGNORECASE)


@dataclass(frozen=True)
class Closing:
    """How a template closes turns.

    mark: matches every special token and everything that looks like one.
    end: the mark that ends a plain answer; "" if there is none.
    suffix: text that the template appends to the document after the last turn.
    """

    mark: re.Pattern[str]
    end: str
    suffix: str

    def find_last(self, text: str) -> str:
        """Return the mark at the end of a text.

        "" if there is none, or if it only closes a part of a turn (`</tool_call>`).
        """
        found = next((found[0] for found in self.mark.finditer(text) if found.end() == len(text)), "")
        return "" if found.startswith(("</", "[/")) and found != self.end else found

    def find_first(self, text: str) -> str:
        """Return the first mark in a text; "" if there is none."""
        found = self.mark.search(text)
        return found[0] if found else ""


def find_closing(renderer: Renderer, tokens: Sequence[str]) -> Closing:
    """Find how a template closes turns by rendering two question-answer pairs of sentinels.

    A template that refuses them gets an empty `end` and `suffix`. `tokens` are marks even if they do not look like one.
    """
    known = {re.escape(token) for token in (*renderer.special_tokens.values(), *tokens) if token.strip()}
    special = sorted(known, key=len, reverse=True)
    mark = re.compile("|".join([*special, r"<\|[^|<>]+\|>", r"<[^<>\s]+>", r"\[/?[A-Z][A-Z_]*\]"]))
    roles = ("user", "assistant", "user", "assistant")
    marked = mark_leaves([{"role": role, "content": "a"} for role in roles])
    try:
        whole = make_source(renderer, marked, renderer.probed_tools).whole()
    except RecordError:
        return Closing(mark, "", "")
    ends = {place.leaf: place for place in whole.places}
    if set(ends) != {0, 1, 2, 3}:
        return Closing(mark, "", "")
    last = whole.text[ends[3].end :]
    between = whole.text[ends[1].end : ends[2].start]
    # Text that also precedes the first message is a message header, unless `between` has nothing else.
    header = count_common_prefix(between[::-1], whole.text[: ends[0].start][::-1])
    common, header_start = count_common_prefix(last, between), len(between) - header or len(between)
    shared = [found for found in mark.finditer(last) if found.end() <= common and found.start() < header_start]
    suffix = last[shared[-1].end() :].strip() if shared else ""
    closing = last.rstrip().removesuffix(suffix).rstrip()
    found = [match[0] for match in mark.finditer(closing) if match.end() == len(closing)]
    return Closing(mark, found[-1] if found else "", suffix)


class Turn:
    """One assistant turn: message `number` of `source`, counted from 0."""

    def __init__(self, source: Source, number: int, closing: Closing):
        self._source, self._number, self._closing = source, number, closing

    @cached_property
    def bounds(self) -> CharSpan:
        """Characters [start, end) of the turn in the whole rendering, stop token included.

        Raises RecordError when the turn cannot be found.
        """
        if self._has_text and not self._find_own_places(self._source.whole()):
            raise self._refuse("the chat template writes none of its text")
        begin, end = self._begin, self._find_end()
        for place in self._source.whole().places:
            is_own = self._source.message_of(place) == self._number
            if is_own and self._source.leaves[place.leaf].kind == LABEL:
                continue
            # A replaced leaf that starts with a tag of the prompt can seem to begin inside the prompt.
            inside = (begin <= place.start or not self._source.is_exact) and begin <= place.end <= end
            if (is_own and not inside) or (not is_own and place.start < end and place.end > begin):
                raise self._refuse("the chat template's output does not separate it from the other messages")
        return begin, end

    @cached_property
    def spans(self) -> list[CharSpan]:
        """Character ranges of the turn that carry loss: all of it, or what `{% generation %}` covers of it.

        Raises RecordError when the turn cannot be found, or when the template's marks do not fit it.
        """
        begin, end = self.bounds
        if not self._marks_turns:
            return [(begin, end)]
        whole = self._source.whole()
        marked = [(start, stop) for start, stop in whole.marks if start < end and stop > begin]
        spans = [(max(start, begin), min(stop, end)) for start, stop in marked]
        self._check_marks(whole, marked, spans)
        return _join(spans)

    def _check_marks(self, whole: Located, marked: list[CharSpan], spans: list[CharSpan]) -> None:
        begin, end = self.bounds
        own = [p for p in whole.places if self._source.message_of(p) == self._number]
        is_covered = all(any(a <= p.start and p.end <= b for a, b in marked) for p in own)
        first, last = (marked[0][0], marked[-1][1]) if marked else (begin, end)
        extra = whole.text[end:last].strip().removesuffix(self._closing.suffix)
        covers_others = any(first < p.end and p.start < last and p not in own for p in whole.places)
        if not spans or not is_covered or spans[-1][1] < end or extra or covers_others:
            shown = " and ".join(_show(whole.text[a:b]) for a, b in marked) or "nothing"
            raise self._refuse(
                f"the chat template's {{% generation %}} block covers {shown}, "
                f"but the turn is {_show(whole.text[begin:end])}"
            )

    @property
    def _marks_turns(self) -> bool:
        return self._source.renderer.marks_turns

    @property
    def _has_text(self) -> bool:
        return any(leaf.message == self._number and leaf.kind != LABEL for leaf in self._source.leaves)

    def _refuse(self, reason: str) -> RecordError:
        return RecordError(f"message {self._number + 1}: {reason}")

    def _find_own_places(self, located: Located) -> list[Place]:
        """Places of the turn in a rendering, without labels, which may precede the turn."""
        return [p for p in self._find_places_after(located, 0) if self._source.leaves[p.leaf].kind != LABEL]

    def _find_places_after(self, located: Located, begin: int) -> list[Place]:
        """Places of the turn that end after `begin`, labels included."""
        return [p for p in located.places if self._source.message_of(p) == self._number and p.end > begin]

    @cached_property
    def _begin(self) -> int:
        return self._end_of_anchor(self._source.whole()) + len(self._header)

    @cached_property
    def _header(self) -> str:
        """Text between the last text before the turn and the turn itself."""
        before = self._before
        lead = before.text[self._anchor.end if self._anchor else 0 :]
        header = self._match_header(lead, self._text_after(self._source.whole()))
        if not self._text_after(self._source.locate(self._number + 1)).startswith(header):
            raise self._refuse(f"when it is the last message, the chat template does not begin it with {_show(header)}")
        return header

    @cached_property
    def _before(self) -> Located:
        try:
            return self._source.locate(self._number, prompt=True) if self._number else find_opening(self._source)
        except RecordError as error:
            raise self._refuse(f"the chat template refuses the messages before it: {error}") from None

    @cached_property
    def _anchor(self) -> Place | None:
        """Place of the last text before the turn; None if there is no text before it."""
        return max(self._before.places, key=lambda place: place.end, default=None)

    @cached_property
    def _unprompted(self) -> int:
        """Number of characters after the anchor that are there without a generation prompt, too."""
        lead = self._before.text[self._anchor.end if self._anchor else 0 :]
        unprompted = self._source.locate(self._number) if self._number else None
        return count_common_prefix(lead, self._text_after(unprompted)) if unprompted else 0

    def _match_header(self, lead: str, follows: str) -> str:
        """Return `lead`, cut before a reasoning block if the turn does not begin with that block."""
        found = count_common_prefix(lead, follows)
        if found == len(lead):
            return lead
        closed = self._unprompted
        cut = next(
            (mark.start() for mark in self._closing.mark.finditer(lead) if mark.start() < found < mark.end()), found
        )
        opened = OPENED.search(lead[:cut], closed)
        if opened and not REASONING.match(lead, cut):
            cut = opened.start()
        header = lead[:cut]
        if cut <= closed or not REASONING.match(lead, cut):
            raise self._refuse(f"the chat template does not begin it with {_show(lead[closed:] or lead)}")
        return header

    def _text_after(self, located: Located) -> str:
        """Text of a rendering after the last text before the turn."""
        return located.text[self._end_of_anchor(located) :]

    def _end_of_anchor(self, located: Located) -> int:
        """Return the offset at which the last text before the turn ends in a rendering."""
        if self._anchor is None:
            return 0
        own = self._find_own_places(located)
        limit = own[0].start if own else len(located.text)
        ends = [p.end for p in located.places if p.leaf == self._anchor.leaf and p.end <= limit]
        if not ends:
            raise self._refuse("the chat template changes or moves the text before it")
        return ends[-1]

    def _find_end(self) -> int:
        source, whole = self._source, self._source.whole()
        alone = source.locate(self._number + 1)
        begin_alone = self._end_of_anchor(alone) + len(self._header)
        own, own_alone = self._find_places_after(whole, self._begin), self._find_places_after(alone, begin_alone)
        if own and own_alone and own[-1].leaf != own_alone[-1].leaf:
            raise self._refuse("the chat template writes different parts of it when more messages follow")
        first = own[-1].end if own else self._begin
        last = own_alone[-1].end if own_alone else begin_alone
        limit = min((p.start for p in whole.places if p.start >= first and p not in own), default=len(whole.text))
        closing = alone.text[last:].rstrip().removesuffix(self._closing.suffix).rstrip()
        return first + self._match_closing(closing, whole.text[first:limit])

    def _match_closing(self, closing: str, tail: str) -> int:
        """Return how many characters of `tail`, the text after the turn's last place, close the turn.

        `closing` is what closes it when it is the last message.
        """
        mark = self._closing.find_last(closing)
        if not mark:
            raise self._refuse(
                f"the chat template writes no stop token after it ({_show(closing)}); a model trained on this would "
                "not stop generating"
            )
        # In a turn that is only a call, `closing` can start with an empty reasoning block that only a last turn has.
        for written in (closing, EMPTY_BLOCK.sub("", closing)):
            if tail.startswith(written):
                return len(written)
            before = written[: -len(mark)]
            others = self._closing.find_first(self._text_after(self._before)[: self._unprompted])
            if others and tail.startswith(before + others):
                return len(before + others)
        raise self._refuse(
            f"the chat template ends it with {_show(closing)} when it is the last message, "
            f"and with {_show(tail)} when more messages follow"
        )


def _join(spans: list[CharSpan]) -> list[CharSpan]:
    """Merge spans that touch or overlap; drop empty ones."""
    joined: list[CharSpan] = []
    for start, end in spans:
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], end)
        elif start < end:
            joined.append((start, end))
    return joined


def _show(text: str) -> str:
    """Quote a text for an error message: each sentinel becomes an ellipsis, and a long text loses its middle."""
    text = FOUND.sub("…", text)
    return repr(text if len(text) <= 2 * SHOWN else f"{text[:SHOWN]} … {text[-SHOWN:]}")
