"""Shows one record of each source as it is trained on: its place, its tokens with the loss marked, and unused keys.

Examples are found before a store is built, saved in it (`STORE/examples.json`), and shown in the log of each run and by
`data_prep.inspect`. Long texts are shown without their middle, so that the edges of the loss spans stay visible.
"""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from data_prep.encode.encoding import Encoder
from data_prep.parse.kinds import Shape
from data_prep.read.files import Span, show_path
from data_prep.read.parts import Part
from data_prep.read.sources import Input
from data_prep.render.documents import Document, find_unused_keys
from data_prep.store.build import BuildSpec, find_encoder, read_batches
from data_prep.store.results import PartResult
from data_prep.store.writing import write_atomically

logger = logging.getLogger("redline.data")

EXAMPLES = "examples.json"
SHOWN_SOURCES = 8
LOOKED_AT = 20  # documents of a source; the first that is not long is shown
LONG_DOCUMENT = 50_000  # characters
SHOWN_LINES, SHOWN_PIECES, SHOWN_CHARACTERS = 15, 9, 400
DIM, GREEN, PLAIN = "\033[2m", "\033[32m", "\033[0m"
Marks = tuple[str, str, str, str]  # before and after text with loss, before and after text without
BRACKETS: Marks = ("⟦", "⟧", "", "")
ASCII_BRACKETS: Marks = ("[[", "]]", "", "")
COLOURS: Marks = (GREEN, PLAIN, DIM, PLAIN)


@dataclass(frozen=True)
class Example:
    """A record as it is trained on.

    pieces: decoded tokens, with whether they carry loss.
    unused: keys of the record that are not used.
    dropped: content that the template left out, by kind.
    """

    source: int
    place: str
    kind: str
    tokens: int
    tokens_with_loss: int
    pieces: list[tuple[str, bool]]
    unused: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)


def find_examples(inputs: Sequence[Input], spec: BuildSpec) -> list[Example]:
    """Find the first good record of each source that is not very long, else the beginning of the first record."""
    encoder = find_encoder(spec)
    skipping = replace(spec, skip_bad_records=True)  # refused when the store is built
    examples: list[Example] = []
    for item, shape in zip(inputs, spec.shapes, strict=True):
        spans = tuple(Span(file.path, file.format) for file in item.files)
        part = Part(item.index, item.index, spans, max_documents=LOOKED_AT)
        documents = next(read_batches(part, skipping, PartResult(item.index, item.index)), [])
        if documents:
            document = next((one for one in documents if len(one.text) <= LONG_DOCUMENT), documents[0])
            examples.append(_make_example(item, shape, document, encoder))
    return examples


def _make_example(item: Input, shape: Shape, document: Document, encoder: Encoder) -> Example:
    origin = document.origin
    if len(document.text) > LONG_DOCUMENT:
        loss = None if document.loss is None else [(a, min(b, LONG_DOCUMENT)) for a, b in document.loss]
        text = document.text[:LONG_DOCUMENT]
        document = Document(text, document.key, origin, document.is_chat, loss, dropped=document.dropped)
    batch = encoder.encode_documents([document])
    has_loss = mark_loss(len(batch.ids), batch.loss_runs[0])
    decode = encoder.tokenizer.backend.decode
    pieces = [
        (decode(batch.ids[start:stop].tolist(), skip_special_tokens=False), bool(has_loss[start]))
        for start, stop in find_pieces(has_loss)
    ]
    return Example(
        source=item.index,
        place=f"{show_path(origin.path)}, {origin.unit} {origin.number}",
        kind=shape.kind,
        tokens=len(batch.ids),
        tokens_with_loss=int(has_loss.sum()),
        pieces=pieces,
        unused=find_unused_keys(item, shape),
        dropped=document.dropped,
    )


def mark_loss(count: int, runs: NDArray[np.int32] | None) -> NDArray[np.bool_]:
    """Mark the tokens that carry loss, given as flattened [start, end) runs (None: all); shape (count,)."""
    has_loss = np.full(count, runs is None)
    for start, end in [] if runs is None else runs.reshape(-1, 2).tolist():
        has_loss[start:end] = True
    return has_loss


def find_pieces(has_loss: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Divide tokens into ranges [start, stop) in which all tokens carry loss, or none does."""
    edges = [0, *(np.flatnonzero(np.diff(has_loss)) + 1).tolist(), len(has_loss)]
    return [(start, stop) for start, stop in zip(edges, edges[1:], strict=False) if start < stop]


def save_examples(directory: Path, examples: Sequence[Example]) -> None:
    """Save examples in a store. Raises WriteError."""
    write_atomically(directory / EXAMPLES, orjson.dumps([asdict(example) for example in examples]))


def load_examples(directory: Path) -> list[Example]:
    """Load the examples of a store; an empty list if they are missing or damaged."""
    try:
        values = orjson.loads((directory / EXAMPLES).read_bytes())
        return [Example(**{**value, "pieces": [tuple(piece) for piece in value["pieces"]]}) for value in values]
    except (OSError, orjson.JSONDecodeError, TypeError, KeyError):
        return []


def log_examples(examples: Sequence[Example]) -> None:
    """Log one record of each of the first sources."""
    marks = choose_marks(sys.stderr.isatty(), sys.stderr.encoding)
    for example in examples[:SHOWN_SOURCES]:
        logger.info("%s", describe_example(example, marks))
    if len(examples) > SHOWN_SOURCES:
        logger.info(
            "%d more sources: python -m data_prep.inspect shows one record of each", len(examples) - SHOWN_SOURCES
        )


def choose_marks(is_terminal: bool, encoding: str | None) -> Marks:
    """Choose colours for a terminal, unless NO_COLOR is set, else brackets that the encoding has."""
    if is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        return COLOURS
    try:
        "".join(BRACKETS).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII_BRACKETS
    return BRACKETS


def describe_example(example: Example, marks: Marks) -> str:
    """Describe an example in a few lines: its place, its text, its unused keys and dropped content."""
    count = f"{example.tokens} tokens"
    shown = f"loss between {marks[0]} and {marks[1]}" if marks is not COLOURS else "loss in green"
    loss = "all with loss" if example.tokens == example.tokens_with_loss else f"{example.tokens_with_loss} with {shown}"
    lines = [f"source {example.source} as it is trained on: {example.place} ({example.kind}, {count}, {loss})"]
    lines += [f"  | {line}" for line in _show_pieces(example, marks).splitlines()]
    if example.unused:
        lines.append(f"  not used of the record: {', '.join(example.unused)}")
    for kind, text in example.dropped.items():
        lines.append(f"  left out by the chat template: {kind} ({shorten(text, 80, 1)})")
    return "\n".join(lines)


def _show_pieces(example: Example, marks: Marks) -> str:
    pieces = list(example.pieces)
    left_out = len(pieces) - SHOWN_PIECES
    if left_out > 0:
        half = SHOWN_PIECES // 2
        pieces = [*pieces[:half], (f"\n… {left_out + 1} pieces …\n", False), *pieces[-half:]]
    most_lines = _share_lines([text.count("\n") + 1 for text, _ in pieces])
    if example.tokens == example.tokens_with_loss:
        marks = ("", "", "", "")
    shown = [(shorten(text, SHOWN_CHARACTERS, most_lines), marks[:2] if loss else marks[2:]) for text, loss in pieces]
    return "".join(_mark(text, around) for text, around in shown)


def _share_lines(counts: Sequence[int]) -> int:
    """Return the most lines that each piece may have for about SHOWN_LINES lines in total."""
    fitting = (most for most in range(SHOWN_LINES, 2, -1) if sum(min(count, most) for count in counts) <= SHOWN_LINES)
    return next(fitting, 2)


def _mark(text: str, marks: Sequence[str]) -> str:
    """Put marks around a text; colours line by line, so that they do not affect the indentation of the next line."""
    if not marks[0].startswith("\033"):
        return f"{marks[0]}{text}{marks[1]}"
    return "\n".join(f"{marks[0]}{line}{marks[1]}" if line else "" for line in text.split("\n"))


def shorten(text: str, most_characters: int, most_lines: int) -> str:
    """Shorten a text to about `most_characters` and `most_lines` by leaving out its middle."""
    text = "".join(_show_controls(text))
    lines = text.split("\n")
    if len(lines) > most_lines + 1:
        head, tail = lines[: (most_lines + 1) // 2], lines[len(lines) - most_lines // 2 :]
        text = "\n".join([*head, f"… {len(lines) - len(head) - len(tail)} lines …", *tail])
    if len(text) > most_characters:
        half = most_characters // 2
        text = f"{text[:half]} … {len(text) - 2 * half} characters … {text[-half:]}"
    return text


def _show_controls(text: str) -> Iterator[str]:
    """Escape control characters, which could move a terminal's cursor or change its colours."""
    for character in text:
        is_control = character < " " and character not in "\n\t"
        yield f"\\x{ord(character):02x}" if is_control or character == "\x7f" else character
