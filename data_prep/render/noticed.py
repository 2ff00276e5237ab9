"""What is worth a word though no record was refused for it, counted by kind with the place of the first."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from data_prep.read.files import BadRecord
from data_prep.render.control_tokens import ControlTokens
from data_prep.render.documents import Document
from data_prep.render.dropped import shorten

SPELLED = "special tokens in text"


@dataclass
class Noticed:
    """Records by kind: what a chat template left out of them, or `SPELLED`. An example's `reason` is the text."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, BadRecord] = field(default_factory=dict)

    def add(self, kind: str, example: BadRecord, count: int = 1) -> None:
        """Count one more of a kind; the first example is kept."""
        self.counts[kind] = self.counts.get(kind, 0) + count
        self.examples.setdefault(kind, example)

    def add_document(self, document: Document, spelled: str | None) -> None:
        """What was left out of a document, and the first special token that it spells."""
        origin = document.origin
        for kind, text in {**document.dropped, **({SPELLED: spelled} if spelled else {})}.items():
            self.add(kind, BadRecord(origin.path, origin.unit, origin.number, shorten(text)))

    def describe(self) -> dict[str, tuple[int, str]]:
        """The number of records and an example in a line, by kind."""
        return {kind: (count, str(self.examples[kind])) for kind, count in self.counts.items()}


def sum_up(parts: Iterable[Noticed]) -> Noticed:
    """Counts of all parts together, with the first example of each kind."""
    whole = Noticed()
    for part in parts:
        for kind, count in part.counts.items():
            whole.add(kind, part.examples[kind], count)
    return whole


def notice_sample(documents: Iterable[Document], control: ControlTokens, with_spelled: bool) -> Noticed:
    """Of documents that are not encoded yet."""
    noticed = Noticed()
    for document in documents:
        spelled = document.text[slice(*document.spelled[0])] if document.spelled else None
        if not document.is_chat:
            spelled = control.find(document.text)
        noticed.add_document(document, spelled if with_spelled else None)
    return noticed


def log_noticed(logger: logging.Logger, noticed: dict[str, tuple[int, str]], among: str) -> None:
    """A line for each kind; `among` says of what they are counted."""
    for kind, (count, example) in noticed.items():
        if kind == SPELLED:
            logger.warning(
                "  %d%s hold special tokens spelled in their text, encoded as ordinary text "
                "(data.special_tokens_in_text), the first: %s",
                count,
                among,
                example,
            )
        else:
            logger.warning("  %d%s: the chat template leaves out %s, the first: %s", count, among, kind, example)
