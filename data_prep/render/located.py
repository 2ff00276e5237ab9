"""Finds where a rendering contains each text (leaf) of a conversation.

`MarkedSource` renders a conversation in which every leaf is a sentinel. One rendering shows all places, and they apply
to every record whose text is that rendering with the record's own leaves in it (`fit`). If the output of a template
depends on the texts, no record fits. `ReplacedSource` then renders the record itself, and once more for each leaf with
that leaf replaced: the part that differs is the leaf's place.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from data_prep.parse.kinds import RecordError
from data_prep.render.leaves import FOUND, SENTINEL, Leaf, Marked, replace_leaf
from data_prep.render.rendering import CharSpan, Messages, Renderer, Tools


class Place(NamedTuple):
    """Characters [start, end) of a text contain leaf number `leaf`."""

    leaf: int
    start: int
    end: int


@dataclass(frozen=True)
class Located:
    """A rendered text, the places of its leaves in text order, and the `{% generation %}` spans of the template."""

    text: str
    places: list[Place]
    marks: list[CharSpan]


class Source:
    """Renderings of the first messages of a conversation; each is made once and kept."""

    is_exact = True

    def __init__(self, renderer: Renderer, messages: Messages, leaves: list[Leaf], tools: Tools):
        self.messages, self.leaves, self.tools = messages, leaves, tools
        self.renderer = renderer
        self._known: dict[tuple[int, bool], Located] = {}

    def locate(self, count: int, prompt: bool = False) -> Located:
        """Render the first `count` messages; `prompt` adds the generation prompt. Raises RecordError."""
        if (count, prompt) not in self._known:
            self._known[count, prompt] = self._locate(count, prompt)
        return self._known[count, prompt]

    def whole(self) -> Located:
        """Render the whole conversation. Raises RecordError."""
        return self.locate(len(self.messages))

    def message_of(self, place: Place) -> int:
        """Number of the message that a place belongs to, counted from 0."""
        return self.leaves[place.leaf].message

    def _locate(self, count: int, prompt: bool) -> Located:
        raise NotImplementedError


class MarkedSource(Source):
    """Renderings of a conversation in which every leaf is a sentinel."""

    def _locate(self, count: int, prompt: bool) -> Located:
        text, marks = self.renderer.render(self.messages[:count], self.tools, prompt)
        places = [Place(int(found[1]), *found.span()) for found in FOUND.finditer(text)]
        return Located(text, places, marks)


class ReplacedSource(Source):
    """Renderings of a record itself. In a part of the conversation only the last leaves are located."""

    is_exact = False

    def _locate(self, count: int, prompt: bool) -> Located:
        text, marks = self.renderer.render(self.messages[:count], self.tools, prompt)
        found = [self._find_place(text, leaf, count, prompt) for leaf in self._choose_leaves(count, prompt)]
        return Located(text, sorted((place for place in found if place), key=lambda place: place.end), marks)

    def _choose_leaves(self, count: int, prompt: bool) -> list[int]:
        """Leaves to locate: all of the whole conversation, else those of the last two messages that have leaves."""
        inside = [i for i, leaf in enumerate(self.leaves) if leaf.message < count]
        if count == len(self.messages) and not prompt:
            return inside
        last = sorted({self.leaves[i].message for i in inside})[-2:]
        return [i for i in inside if self.leaves[i].message in last]

    def _find_place(self, text: str, leaf: int, count: int, prompt: bool) -> Place | None:
        try:
            changed, _ = self.renderer.render(replace_leaf(self.messages, leaf)[:count], self.tools, prompt)
        except RecordError:
            return None
        if SENTINEL.format(leaf) not in changed:
            return None
        first = count_common_prefix(text, changed)
        return Place(leaf, first, len(text) - count_common_prefix(text[first:][::-1], changed[first:][::-1]))


def find_opening(source: Source) -> Located:
    """Build the text before an assistant turn that is the first message, generation prompt included.

    An empty conversation cannot be rendered for this: many templates refuse it, or leave out the start of the text.
    So the prompt is what the template appends to a question. It is placed where it matches the first message's own
    rendering best. Raises RecordError.
    """
    first, question = source.locate(1), [{"role": "user", "content": "a"}]
    plain, prompted = (source.renderer.render(question, source.tools, prompt).text for prompt in (False, True))
    prompt = prompted[count_common_prefix(plain, prompted) :]
    said = min((place.start for place in first.places), default=len(first.text))
    starts = [at for at in range(said + 1) if prompt and first.text.startswith(prompt[0], at)]
    best = max(starts, key=lambda at: count_common_prefix(prompt, first.text[at:]), default=said)
    return Located(first.text[:best] + prompt, [], [])


@dataclass(frozen=True)
class Fit:
    """Maps offsets of a marked text to a record's text: add `shifts[i]` after i sentinels, which end at `ends`."""

    ends: list[int]
    shifts: list[int]

    def move(self, span: CharSpan) -> CharSpan:
        """Map a span of the marked text to the record's text."""
        start, end = (at + self.shifts[bisect_right(self.ends, at)] for at in span)
        return start, end


def fit(located: Located, leaves: Sequence[Leaf], text: str) -> Fit | None:
    """Map the marked text to `text`, which must be the marked text with these leaves instead of its sentinels.

    A leaf may be unchanged, trimmed, or escaped as in a JSON string. None if `text` differs in any other way.
    """
    at, before, grown = 0, 0, [0]
    for place, after in zip(located.places, _list_literals(located), strict=True):
        literal = located.text[before : place.start]
        if not text.startswith(literal, at):
            return None
        at += len(literal)
        for written in _spell(leaves[place.leaf].text):
            if text.startswith(written, at) and text.startswith(after, at + len(written)):
                break
        else:
            return None
        at += len(written)
        grown.append(len(written) - (place.end - place.start))
        before = place.end
    if text[at:] != located.text[before:]:
        return None
    return Fit([place.end for place in located.places], list(accumulate(grown)))


def _list_literals(located: Located) -> Iterator[str]:
    """Text after each place, up to the next place."""
    starts = [*(place.start for place in located.places), len(located.text)]
    return (located.text[p.end : n] for p, n in zip(located.places, starts[1:], strict=True))


def _spell(text: str) -> Iterator[str]:
    """Forms in which templates write a text."""
    yield text
    yield text.strip()
    yield text.lstrip()
    yield text.rstrip()
    yield text.strip("\n")
    yield text.lstrip("\n")
    yield text.rstrip("\n")
    yield json.dumps(text, ensure_ascii=False)[1:-1]


def make_source(renderer: Renderer, marked: Marked, tools: Tools) -> MarkedSource:
    """Make the renderings of a conversation of sentinels."""
    return MarkedSource(renderer, marked.messages, marked.leaves, tools)


def count_common_prefix(one: str, two: str) -> int:
    """Count the equal characters at the start of both texts."""
    low, high = 0, min(len(one), len(two))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == two[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
