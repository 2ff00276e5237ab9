"""Sources to documents: records parsed by the kind of their source, conversations rendered by the chat template.

What cannot be read, parsed or rendered comes out as a `BadRecord` in its place: records in = documents out + bad
records out.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import orjson

from data_prep.errors import UserError
from data_prep.options import TrainOn
from data_prep.parse.columns import Layout, find_unused
from data_prep.parse.kinds import (
    Content,
    Conversation,
    LabelledFalse,
    Preference,
    RecordError,
    Shape,
    find_record_layout,
    find_shape,
    parse_record,
)  # fmt: skip
from data_prep.read.delimiters import sniff_delimiter
from data_prep.read.records import BadRecord, Record, Span, read_records
from data_prep.read.sources import Input
from data_prep.render.chat import ChatTemplate
from data_prep.render.rendering import CharSpan

logger = logging.getLogger("redline.data")

SHAPE_RECORDS = 1000


@dataclass(slots=True)
class Document:
    """A text and the character ranges that carry loss (None: all). `key` is what its content hash is taken of.

    A chat is whole as its template wrote it; a text still gets its end-of-document token. Of a preference pair this is
    the chosen conversation, and `rejected` the other one, under the same key: the pair stays in one split. `dropped`
    is what its template left out of it, an example by kind; `spelled` are special tokens that a chat itself spells.
    """

    text: str
    key: bytes
    origin: Record
    is_chat: bool = False
    loss: list[CharSpan] | None = None
    rejected: "Document | None" = None
    dropped: dict[str, str] = field(default_factory=dict)
    spelled: list[CharSpan] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A record whose own label says that its answer is bad."""

    origin: Record


def find_source_shape(item: Input, skip_bad_records: bool = False) -> Shape:
    """Kind of a source from its first good record; logged. With none among its first SHAPE_RECORDS it is taken for text
    where bad records are skipped, so that each is counted with its reason. Else raises UserError naming the place."""
    section, reasons = item.section, []
    for record in _first_records(item):
        if isinstance(record, BadRecord):
            reasons.append(str(record))
            continue
        try:
            shape = find_shape(record.value, section.kind, section.text_key, section.named_columns)
            shape = replace(shape, records_key=section.records_key, delimiter=section.delimiter)
        except RecordError as error:
            reasons.append(str(_refuse(record, error)))
            continue
        _log_shape(item, shape, record)
        return replace(shape, max_record_bytes=item.max_record_bytes)
    if not skip_bad_records:
        raise UserError(f"data.sources.{item.index}: {reasons[0]}")
    logger.warning("data.sources.%d: no good record among the first %d, taken for text", item.index, len(reasons))
    kind = "text" if section.kind == "auto" else section.kind
    return Shape(
        kind,
        section.text_key,
        item.max_record_bytes,
        section.named_columns,
        section.records_key,
        section.delimiter,
    )


def _first_records(item: Input) -> Iterator[Record | BadRecord]:
    count = 0
    options = {"records_key": item.section.records_key, "delimiter": item.section.delimiter}
    for file in item.files:
        for record in read_records(Span(file.path, file.format), item.max_record_bytes, **options):
            yield record
            count += 1
            if count == SHAPE_RECORDS:
                return


def _log_shape(item: Input, shape: Shape, record: Record) -> None:
    how = "as set" if item.section.kind != "auto" else f"found from {record.unit} {record.number}"
    key = f" under {shape.text_key!r}" if shape.text_key else ""
    files = f"{len(item.files)} file{'s' * (len(item.files) != 1)}"
    layout = _find_used(record, shape)
    kept = "; the chosen answers train, the rejected ones are kept beside them" if shape.kind == "preference" else ""
    if layout is not None and "label" in layout.keys:
        kept = f"; records whose {layout.keys['label']!r} says that the answer is bad are left out and counted"
    keys = f"; {layout.describe(record.value)}" if layout is not None and isinstance(record.value, dict) else ""
    split = _describe_delimiter(item, record)
    what = f"kind {shape.kind}{key} ({how}){kept}{keys}{split}"
    logger.info("data.sources.%d: %s, %s, %s", item.index, item.section.path, files, what)


def find_unused_keys(item: Input, shape: Shape) -> list[str]:
    """Keys of a source's first good record that are in no use."""
    for record in _first_records(item):
        if isinstance(record, Record) and (layout := _find_used(record, shape)) is not None:
            return find_unused(layout, record.value)
    return []


def _find_used(record: Record, shape: Shape) -> Layout | None:
    """The keys of a source's first record, as far as it has any."""
    if not isinstance(record.value, dict):
        return None
    if shape.kind == "text":
        return Layout("text", {"text": shape.text_key}) if shape.text_key else None
    try:
        return find_record_layout(record.value, shape)
    except RecordError:
        return None


def _describe_delimiter(item: Input, record: Record) -> str:
    file = next(file for file in item.files if file.path == record.path)
    if file.format not in ("csv", "tsv"):
        return ""
    delimiter = item.section.delimiter or sniff_delimiter(file.path, file.format)
    return f"; fields split at {delimiter!r}"


def parse_records(spans: Iterable[Span], shape: Shape) -> Iterator[tuple[Record, Content] | BadRecord]:
    """Texts and conversations with the record they come from."""
    for span in spans:
        for record in read_records(
            span, shape.max_record_bytes, shape.text_key, records_key=shape.records_key, delimiter=shape.delimiter
        ):
            if isinstance(record, BadRecord):
                yield record
                continue
            try:
                content = parse_record(record.value, shape)
            except RecordError as error:
                yield _refuse(record, error)
                continue
            yield record, content


def read_documents(
    spans: Iterable[Span], shape: Shape, template: ChatTemplate, train_on: TrainOn
) -> Iterator[Document | BadRecord | LeftOut]:
    """Documents of some spans of one source."""
    for item in parse_records(spans, shape):
        if isinstance(item, BadRecord):
            yield item
            continue
        record, content = item
        if isinstance(content, str):
            yield Document(content, content.encode(), record)
            continue
        if isinstance(content, LabelledFalse):
            yield LeftOut(record)
            continue
        try:
            yield _render(content, record, template, train_on)
        except RecordError as error:
            yield _refuse(record, error)


def _render(content: Conversation | Preference, record: Record, template: ChatTemplate, train_on: TrainOn) -> Document:
    if isinstance(content, Preference):
        document = _render(content.chosen, record, template, train_on)
        document.rejected = _render(content.rejected, record, template, train_on)
        document.rejected.key = document.key
        document.dropped = {**document.rejected.dropped, **document.dropped}
        return document
    # The hash is of what was said, so a document keeps its split when the template changes.
    try:
        key = orjson.dumps([content.messages, content.tools], option=orjson.OPT_SORT_KEYS)
    except TypeError as error:  # bytes in a column, objects nested deeper than JSON writers go
        raise RecordError(f"a message or tool that JSON cannot hold ({error})") from None
    rendered = template.render(content, train_on)
    if rendered.loss is not None and not any(start < end for start, end in rendered.loss):
        raise RecordError("no turn carries loss")
    chat = {"is_chat": True, "loss": rendered.loss, "dropped": rendered.dropped, "spelled": rendered.spelled}
    return Document(rendered.text, key, record, **chat)


def _refuse(record: Record, error: RecordError) -> BadRecord:
    return BadRecord(record.path, record.unit, record.number, str(error))


def text_of(content: Content) -> str:
    """Plain text of a document for training a tokenizer: what was said, without any template; empty of what is left
    out."""
    if isinstance(content, str):
        return content
    if isinstance(content, LabelledFalse):
        return ""
    if isinstance(content, Preference):
        return f"{text_of(content.chosen)}\n{content.rejected.messages[-1]['content']}"
    return "\n".join(message["content"] for message in content.messages if message["content"])
