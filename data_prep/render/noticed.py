"""Counts records that are used but deserve a warning, by kind, and keeps the first of each kind as an example."""

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
    """Numbers of records by kind: the kind of content that a chat template left out, or `SPELLED`.

    The `reason` of an example is the text concerned.
    """

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, BadRecord] = field(default_factory=dict)

    def add(self, kind: str, example: BadRecord, count: int = 1) -> None:
        """Count `count` more records of a kind; only the first example is kept."""
        self.counts[kind] = self.counts.get(kind, 0) + count
        self.examples.setdefault(kind, example)

    def add_document(self, document: Document, spelled: str | None) -> None:
        """Count what was left out of a document, and `spelled`, the first special token in its text."""
        origin = document.origin
        for kind, text in {**document.dropped, **({SPELLED: spelled} if spelled else {})}.items():
            self.add(kind, BadRecord(origin.path, origin.unit, origin.number, shorten(text)))

    def describe(self) -> dict[str, tuple[int, str]]:
        """Return, by kind, the number of records and an example on one line."""
        return {kind: (count, str(self.examples[kind])) for kind, count in self.counts.items()}


def sum_up(parts: Iterable[Noticed]) -> Noticed:
    """Add up the counts of all parts, with the first example of each kind."""
    whole = Noticed()
    for part in parts:
        for kind, count in part.counts.items():
            whole.add(kind, part.examples[kind], count)
    return whole


def notice_sample(documents: Iterable[Document], control: ControlTokens, with_spelled: bool) -> Noticed:
    """Count in documents that are not encoded yet; `with_spelled` counts special tokens in their text, too."""
    noticed = Noticed()
    for document in documents:
        spelled = document.text[slice(*document.spelled[0])] if document.spelled else None
        if not document.is_chat:
            spelled = control.find(document.text)
        noticed.add_document(document, spelled if with_spelled else None)
    return noticed


def log_noticed(logger: logging.Logger, noticed: dict[str, tuple[int, str]], among: str) -> None:
    """Log one line for each kind; `among` follows each count (" of 100 documents")."""
    for kind, (count, example) in noticed.items():
        if kind == SPELLED:
            logger.warning(
                "  %d%s contain special tokens in their text, which are encoded as ordinary text "
                "(data.special_tokens_in_text); the first: %s",
                count,
                among,
                example,
            )
        else:
            logger.warning("  %d%s: the chat template leaves out %s; the first: %s", count, among, kind, example)
