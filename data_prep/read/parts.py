"""Divides files into parts that processes work on independently, and names the result of each part.

The plan depends only on the content of the sources: files in the order of their paths, split into `chunks`. A chunk of
MIN_BYTES or more is a part; smaller consecutive chunks are grouped. The hash of a chunk decides if it ends a group, so
adding, removing or changing a file moves only the parts around it. A source with a limit (`max_documents`,
`max_tokens`) is one part, because "the first N" needs a single reader.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_prep.read import chunks
from data_prep.read.chunks import Chunk, Content
from data_prep.read.files import Span
from data_prep.read.fingerprint import name_of
from data_prep.read.sources import Input


@dataclass(frozen=True)
class Part:
    """Work for one process: some spans of one source, in order.

    index: number of the part, over all sources; source: number of its source.
    size: bytes of its spans in the files.
    content: name of the content of the spans.
    fingerprint: name of the result (its shards and bad records); empty if no store is built.
    dropped: numbers of its good documents that are left out as duplicates, ascending.
    """

    index: int
    source: int
    spans: tuple[Span, ...]
    max_documents: int | None = None
    max_tokens: int | None = None
    size: int = 0
    content: str = ""
    fingerprint: str = ""
    dropped: tuple[int, ...] = ()


def plan_parts(inputs: Sequence[Input], contents: Sequence[Sequence[Content]]) -> list[Part]:
    """Plan the parts of all sources, numbered consecutively; `contents` are those of each source's files."""
    parts: list[Part] = []
    for item, found in zip(inputs, contents, strict=True):
        limits = (item.section.max_documents, item.section.max_tokens)
        for group in _group(item, found) if limits == (None, None) else [_take_all(item, found)]:
            size = sum(chunk.size for _, chunk in group)
            # The start of a file is special: it may be a byte order mark, and an empty file is a bad record.
            content = name_of([[span.format, span.start == 0, chunk.hash] for span, chunk in group])
            spans = tuple(span for span, _ in group)
            parts.append(Part(len(parts), item.index, spans, *limits, size=size, content=content))
    return parts


Group = list[tuple[Span, Chunk]]


def _take_all(item: Input, contents: Sequence[Content]) -> Group:
    return [
        (Span(file.path, file.format, stamp=file.stamp), Chunk(0, None, 1, file.size, content.hash))
        for file, content in zip(item.files, contents, strict=True)
    ]


def _group(item: Input, contents: Sequence[Content]) -> Iterator[Group]:
    group: Group = []
    size = 0
    for file, content in zip(item.files, contents, strict=True):
        for chunk in content.chunks:
            if group and (chunk.size >= chunks.MIN_BYTES or size + chunk.size > chunks.MAX_BYTES):
                yield group
                group, size = [], 0
            span = Span(file.path, file.format, chunk.start, chunk.end, chunk.first_line, file.stamp)
            group.append((span, chunk))
            size += chunk.size
            if size >= chunks.MIN_BYTES and _ends_group(chunk):
                yield group
                group, size = [], 0
    if group:
        yield group


def _ends_group(chunk: Chunk) -> bool:
    """Whether the hash of a chunk ends its group; the probability is its size divided by MIN_BYTES.

    So, on average, a group grows by MIN_BYTES after it could first end.
    """
    return int(chunk.hash[:8], 16) * chunks.MIN_BYTES < chunk.size << 32
