"""Files cut into parts that processes can work on alone, and the name of what each part becomes.

The plan is a pure function of the sources' content: files in the order of their paths, cut as `chunks` says. A chunk of
MIN_BYTES and more is a part, smaller ones in a row are grouped. A group, too, ends where content says (the hash of its
last chunk), so that a file that is added, removed or changed moves the parts around it and no others. A source with a
limit (`max_documents`, `max_tokens`) is one part, because "the first N" needs one reader.
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

    `dropped` are numbers of its good documents, ascending, that are left out as duplicates.
    `size` is that of the files' bytes; `content` names what the spans hold; `fingerprint` names the result (its shards
    and bad records) and is empty where no store is built.
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
    """Parts of all sources, numbered through; `contents` are those of each source's files."""
    parts: list[Part] = []
    for item, found in zip(inputs, contents, strict=True):
        limits = (item.section.max_documents, item.section.max_tokens)
        for group in _group(item, found) if limits == (None, None) else [_take_all(item, found)]:
            size = sum(chunk.size for _, chunk in group)
            # A file's first bytes may be a byte order mark, and an empty file is a bad record: its start counts.
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
    """By its hash, with a chance of its share in MIN_BYTES: on average a group grows by as much after its first."""
    return int(chunk.hash[:8], 16) * chunks.MIN_BYTES < chunk.size << 32
