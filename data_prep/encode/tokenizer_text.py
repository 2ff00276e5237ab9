"""Chooses and reads the parts of the sources from which the training text of a tokenizer is sampled.

`tokenizer.TextSample` samples documents by their hashes. To keep reading time independent of the input size, only
parts with READ_TIMES the bytes of the sample are read. The hashes of their contents choose them, with at least one
part of each source. One process reads them, at about 2 s per GB of JSONL.
"""

from collections.abc import Iterator, Sequence

from data_prep.errors import UserError
from data_prep.parse.kinds import Shape
from data_prep.read.files import refuse_changes
from data_prep.read.fingerprint import name_of
from data_prep.read.parts import Part
from data_prep.read.records import BadRecord
from data_prep.render.documents import parse_records, text_of

READ_TIMES = 8


def choose_parts(parts: Sequence[Part], max_bytes: int, seed: int) -> list[Part]:
    """Choose parts of about `max_bytes` in total, at least one of each source.

    The order depends only on content and seed, not on paths or other parts.
    """
    chosen: list[Part] = []
    size, seen = 0, set[int]()
    for part in sorted(parts, key=lambda part: name_of([seed, part.content])):
        if size < max_bytes or part.source not in seen:
            chosen.append(part)
            size += part.size
            seen.add(part.source)
    return chosen


def read_texts(parts: Sequence[Part], shapes: Sequence[Shape]) -> Iterator[str]:
    """Read the good texts; bad records are handled when the store is built.

    Raises UserError when a file changed, and when there is no text because records cannot be used.
    """
    first_bad: BadRecord | None = None
    any_text = False
    for part in parts:
        count = 0
        with refuse_changes(part.spans):
            for found in parse_records(part.spans, shapes[part.source]):
                if isinstance(found, BadRecord):
                    first_bad = first_bad or found
                    continue
                if text := text_of(found[1]):
                    any_text = True
                    yield text
                    count += 1
                if count == part.max_documents:
                    break
    if first_bad is not None and not any_text:
        raise UserError(f"tokenizer: data.sources contain no text to train it on: {first_bad}")
