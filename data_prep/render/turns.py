"""The characters of an assistant's turn: from behind the generation prompt up to and with its stop token.

Two derivations have to agree. The one looks at the turn in its place, in the rendering of the whole conversation: what
others say bounds it on both sides. The other renders the conversation up to the turn, with the generation prompt, and
up to and with the turn: what comes on top is the turn by itself, with nothing behind it.
- The turn begins behind the text that stands, in the rendering up to the turn, between what was said last and the end.
  In its place the same text has to follow the same words, but for a reasoning block that a prompt opens or leaves
  empty and this turn does not.
- It ends with what the turn by itself ends with, which is a stop token. In its place the same has to follow the turn's
  last words, or, where a template closes the last turn otherwise than others, what closes the turns before it.
- Between them stands everything that the turn says, and nothing that others say.
- `{% generation %}`, where a template has it, covers what the turn says and its stop token, and nothing that others
  say. What it covers of the prompt, or of white space behind the turn, carries no loss all the same.
Where one of these does not hold the record is refused with the reason.
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
    """How a template closes turns: what looks like a mark, `end` of a plain answer, and a `suffix` of the document."""

    mark: re.Pattern[str]
    end: str
    suffix: str

    def find_last(self, text: str) -> str:
        """The mark that ends a text; "" where none does, or one that closes a part of a turn (`</tool_call>`)."""
        found = next((found[0] for found in self.mark.finditer(text) if found.end() == len(text)), "")
        return "" if found.startswith(("</", "[/")) and found != self.end else found

    def find_first(self, text: str) -> str:
        """The stop token that comes first in a text; empty when there is none."""
        found = self.mark.search(text)
        return found[0] if found else ""


def find_closing(renderer: Renderer, tokens: Sequence[str]) -> Closing:
    """Read off two exchanges of sentinels; a template that refuses them is taken to have no suffix. `tokens` are marks
    besides what looks like one."""
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
    # What stands before the first message as well is the header of a message, unless it is all there is.
    header = count_common_prefix(between[::-1], whole.text[: ends[0].start][::-1])
    common, behind = count_common_prefix(last, between), len(between) - header or len(between)
    shared = [found for found in mark.finditer(last) if found.end() <= common and found.start() < behind]
    suffix = last[shared[-1].end() :].strip() if shared else ""
    closing = last.rstrip().removesuffix(suffix).rstrip()
    found = [match[0] for match in mark.finditer(closing) if match.end() == len(closing)]
    return Closing(mark, found[-1] if found else "", suffix)


class Turn:
    """One assistant's turn of a source."""

    def __init__(self, source: Source, number: int, closing: Closing):
        self._source, self._number, self._closing = source, number, closing

    @cached_property
    def bounds(self) -> CharSpan:
        """From behind the prompt to behind the stop token. Raises RecordError."""
        if self._says_anything and not self._own(self._source.whole()):
            raise self._refuse("the chat template writes nothing of what it says")
        begin, end = self._begin, self._find_end()
        for place in self._source.whole().places:
            is_mine = self._source.message_of(place) == self._number
            if is_mine and self._source.leaves[place.leaf].kind == LABEL:
                continue
            # A replaced leaf may seem to begin within the prompt, where it brings a tag that the prompt brings, too.
            inside = (begin <= place.start or not self._source.is_exact) and begin <= place.end <= end
            if (is_mine and not inside) or (not is_mine and place.start < end and place.end > begin):
                raise self._refuse("the chat template's output does not tell what it says from what others say")
        return begin, end

    @cached_property
    def spans(self) -> list[CharSpan]:
        """The ranges that carry loss: all of the turn, or what the template marks of it. Raises RecordError."""
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
        mine = [p for p in whole.places if self._source.message_of(p) == self._number]
        held = all(any(a <= p.start and p.end <= b for a, b in marked) for p in mine)
        first, last = (marked[0][0], marked[-1][1]) if marked else (begin, end)
        over = whole.text[end:last].strip().removesuffix(self._closing.suffix)
        foreign = any(first < p.end and p.start < last and p not in mine for p in whole.places)
        if not spans or not held or spans[-1][1] < end or over or foreign:
            shown = " and ".join(_show(whole.text[a:b]) for a, b in marked) or "nothing"
            raise self._refuse(
                f"the chat template marks {shown} with generation, and writes {_show(whole.text[begin:end])} for it"
            )

    @property
    def _marks_turns(self) -> bool:
        return self._source.renderer.marks_turns

    @property
    def _says_anything(self) -> bool:
        return any(leaf.message == self._number and leaf.kind != LABEL for leaf in self._source.leaves)

    def _refuse(self, reason: str) -> RecordError:
        return RecordError(f"message {self._number + 1}: {reason}")

    def _own(self, located: Located) -> list[Place]:
        """The turn's places in a rendering, but for labels, which may stand before it."""
        return [p for p in self._all_from(located, 0) if self._source.leaves[p.leaf].kind != LABEL]

    def _all_from(self, located: Located, begin: int) -> list[Place]:
        return [p for p in located.places if self._source.message_of(p) == self._number and p.end > begin]

    @cached_property
    def _begin(self) -> int:
        return self._end_of_anchor(self._source.whole()) + len(self._header)

    @cached_property
    def _header(self) -> str:
        """What stands before the turn, behind what was said last."""
        before = self._before
        lead = before.text[self._anchor.end if self._anchor else 0 :]
        header = self._match_header(lead, self._follow(self._source.whole()))
        if not self._follow(self._source.locate(self._number + 1)).startswith(header):
            raise self._refuse(f"rendered on its own, the chat template does not begin it with {_show(header)}")
        return header

    @cached_property
    def _before(self) -> Located:
        try:
            return self._source.locate(self._number, prompt=True) if self._number else find_opening(self._source)
        except RecordError as error:
            raise self._refuse(f"the chat template refuses the conversation with this turn: {error}") from None

    @cached_property
    def _anchor(self) -> Place | None:
        """What was said last before the turn."""
        return max(self._before.places, key=lambda place: place.end, default=None)

    @cached_property
    def _closed(self) -> int:
        """How much of what stands before the turn is there without a generation prompt, too."""
        lead = self._before.text[self._anchor.end if self._anchor else 0 :]
        return count_common_prefix(lead, self._follow(self._source.locate(self._number))) if self._number else 0

    def _match_header(self, lead: str, follows: str) -> str:
        """`lead`, or as much of it as comes before a reasoning block that the turn does not begin with."""
        found = count_common_prefix(lead, follows)
        if found == len(lead):
            return lead
        closed = self._closed
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

    def _follow(self, located: Located) -> str:
        return located.text[self._end_of_anchor(located) :]

    def _end_of_anchor(self, located: Located) -> int:
        """Where in a rendering that ends which was said last before this turn."""
        if self._anchor is None:
            return 0
        own = self._own(located)
        limit = own[0].start if own else len(located.text)
        ends = [p.end for p in located.places if p.leaf == self._anchor.leaf and p.end <= limit]
        if not ends:
            raise self._refuse("the chat template changes or moves what stands before it")
        return ends[-1]

    def _find_end(self) -> int:
        source, whole = self._source, self._source.whole()
        alone = source.locate(self._number + 1)
        begin_alone = self._end_of_anchor(alone) + len(self._header)
        own, own_alone = self._all_from(whole, self._begin), self._all_from(alone, begin_alone)
        if own and own_alone and own[-1].leaf != own_alone[-1].leaf:
            raise self._refuse("the chat template writes other parts of it within the conversation than on its own")
        first = own[-1].end if own else self._begin
        last = own_alone[-1].end if own_alone else begin_alone
        limit = min((p.start for p in whole.places if p.start >= first and p not in own), default=len(whole.text))
        closing = alone.text[last:].rstrip().removesuffix(self._closing.suffix).rstrip()
        return first + self._match_closing(closing, whole.text[first:limit])

    def _match_closing(self, closing: str, tail: str) -> int:
        """How much of `tail` closes the turn. By itself it is closed by `closing`."""
        mark = self._closing.find_last(closing)
        if not mark:
            raise self._refuse(
                f"the chat template writes no stop token behind it ({_show(closing)}): trained on it, a model would "
                "not stop"
            )
        # A call without a text of its own is all literal: with the empty reasoning block that a last turn may have.
        for written in (closing, EMPTY_BLOCK.sub("", closing)):
            if tail.startswith(written):
                return len(written)
            before, others = written[: -len(mark)], self._closing.find_first(self._follow(self._before)[: self._closed])
            if others and tail.startswith(before + others):
                return len(before + others)
        raise self._refuse(
            f"the chat template ends it with {_show(closing)} on its own, "
            f"and with {_show(tail)} within the conversation"
        )


def _join(spans: list[CharSpan]) -> list[CharSpan]:
    """Spans that touch as one."""
    joined: list[CharSpan] = []
    for start, end in spans:
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], end)
        elif start < end:
            joined.append((start, end))
    return joined


def _show(text: str) -> str:
    """For a message: an ellipsis for each sentinel, and both ends of what is long."""
    text = FOUND.sub("…", text)
    return repr(text if len(text) <= 2 * SHOWN else f"{text[:SHOWN]} … {text[-SHOWN:]}")
