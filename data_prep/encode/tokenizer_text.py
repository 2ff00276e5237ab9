"""The text that a tokenizer is trained on: of what part of the sources its sample is taken.

The sample itself is chosen by the hashes of documents (`tokenizer.TextSample`). So that reading does not grow with the
input, it is chosen from parts of READ_TIMES as many bytes, themselves chosen by the hash of their content: one at least
of each source, and all where there are no more. One process reads them, about 2 s per GB of JSONL.
"""

from collections.abc import Iterator, Sequence

from data_prep.parse.kinds import Shape
from data_prep.read.files import refuse_changes
from data_prep.read.fingerprint import name_of
from data_prep.read.parts import Part
from data_prep.read.records import BadRecord
from data_prep.render.documents import parse_records, text_of

READ_TIMES = 8


def choose_parts(parts: Sequence[Part], max_bytes: int, seed: int) -> list[Part]:
    """Parts of about `max_bytes`, and one of each source, the same wherever they lie and whatever else there is."""
    chosen: list[Part] = []
    size, seen = 0, set[int]()
    for part in sorted(parts, key=lambda part: name_of([seed, part.content])):
        if size < max_bytes or part.source not in seen:
            chosen.append(part)
            size += part.size
            seen.add(part.source)
    return chosen


def read_texts(parts: Sequence[Part], shapes: Sequence[Shape]) -> Iterator[str]:
    """Good texts; what is bad is dealt with when the store is built. Raises UserError when a file changed."""
    for part in parts:
        count = 0
        with refuse_changes(part.spans):
            for found in parse_records(part.spans, shapes[part.source]):
                if isinstance(found, BadRecord):
                    continue
                if text := text_of(found[1]):
                    yield text
                    count += 1
                if count == part.max_documents:
                    break
