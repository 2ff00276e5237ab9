"""Renderings of which is known where they hold what the messages say.

`MarkedSource` renders a conversation whose leaves are all sentinels: one rendering shows every place, and what holds
for it holds for each record whose text is the same with its own leaves put in (`fit`). Where a template looks into
what is said, and so no record fits, `ReplacedSource` renders the record itself, and again with one leaf replaced: what
differs is that leaf's place. It costs a rendering for each leaf.
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
    """Characters [start, end) of a text hold leaf `leaf`."""

    leaf: int
    start: int
    end: int


@dataclass(frozen=True)
class Located:
    """A text, the places of leaves in its order, and what the template marks itself."""

    text: str
    places: list[Place]
    marks: list[CharSpan]


class Source:
    """Renderings of the first messages of a conversation, each made once."""

    is_exact = True

    def __init__(self, renderer: Renderer, messages: Messages, leaves: list[Leaf], tools: Tools):
        self.messages, self.leaves, self.tools = messages, leaves, tools
        self.renderer = renderer
        self._known: dict[tuple[int, bool], Located] = {}

    def locate(self, count: int, prompt: bool = False) -> Located:
        """The first `count` messages, with a generation prompt or without. Raises RecordError."""
        if (count, prompt) not in self._known:
            self._known[count, prompt] = self._locate(count, prompt)
        return self._known[count, prompt]

    def whole(self) -> Located:
        """The rendering of the whole conversation."""
        return self.locate(len(self.messages))

    def message_of(self, place: Place) -> int:
        """Number of the message that a place belongs to."""
        return self.leaves[place.leaf].message

    def _locate(self, count: int, prompt: bool) -> Located:
        raise NotImplementedError


class MarkedSource(Source):
    """Of a conversation of sentinels."""

    def _locate(self, count: int, prompt: bool) -> Located:
        text, marks = self.renderer.render(self.messages[:count], self.tools, prompt)
        places = [Place(int(found[1]), *found.span()) for found in FOUND.finditer(text)]
        return Located(text, places, marks)


class ReplacedSource(Source):
    """Of a record as it is. Of less than the whole of it, only the last leaves are looked for."""

    is_exact = False

    def _locate(self, count: int, prompt: bool) -> Located:
        text, marks = self.renderer.render(self.messages[:count], self.tools, prompt)
        found = [self._find_place(text, leaf, count, prompt) for leaf in self._choose_leaves(count, prompt)]
        return Located(text, sorted((place for place in found if place), key=lambda place: place.end), marks)

    def _choose_leaves(self, count: int, prompt: bool) -> list[int]:
        """Those of the last two messages that have any; of the whole all."""
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
    """What stands before a first turn, up to and with the generation prompt. That is what the template adds to a
    question, and its place is where it fits the turn by itself best: many render no empty conversation, or leave out
    of it what begins a text. Raises RecordError."""
    first, question = source.locate(1), [{"role": "user", "content": "a"}]
    plain, prompted = (source.renderer.render(question, source.tools, prompt).text for prompt in (False, True))
    prompt = prompted[count_common_prefix(plain, prompted) :]
    said = min((place.start for place in first.places), default=len(first.text))
    starts = [at for at in range(said + 1) if prompt and first.text.startswith(prompt[0], at)]
    best = max(starts, key=lambda at: count_common_prefix(prompt, first.text[at:]), default=said)
    return Located(first.text[:best] + prompt, [], [])


@dataclass(frozen=True)
class Fit:
    """How places in a marked text become those of a record's text: `shifts[i]` behind the i-th sentinel."""

    ends: list[int]
    shifts: list[int]

    def move(self, span: CharSpan) -> CharSpan:
        """A span of one rendering in the coordinates of the other."""
        start, end = (at + self.shifts[bisect_right(self.ends, at)] for at in span)
        return start, end


def fit(located: Located, leaves: Sequence[Leaf], text: str) -> Fit | None:
    """None where `text` is not, to the letter, the marked text with these leaves in it, each whole, or trimmed, or
    escaped as within a JSON string."""
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
    """What stands behind each place, up to the next."""
    starts = [*(place.start for place in located.places), len(located.text)]
    return (located.text[p.end : n] for p, n in zip(located.places, starts[1:], strict=True))


def _spell(text: str) -> Iterator[str]:
    yield text
    yield text.strip()
    yield text.lstrip()
    yield text.rstrip()
    yield text.strip("\n")
    yield text.lstrip("\n")
    yield text.rstrip("\n")
    yield json.dumps(text, ensure_ascii=False)[1:-1]


def make_source(renderer: Renderer, marked: Marked, tools: Tools) -> MarkedSource:
    """Renderings of a conversation whose texts carry marks."""
    return MarkedSource(renderer, marked.messages, marked.leaves, tools)


def count_common_prefix(one: str, two: str) -> int:
    """Number of equal characters at the start of both."""
    low, high = 0, min(len(one), len(two))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == two[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
