"""Turns the records of sources into documents: parses them by kind, and renders conversations with the chat template.

A record that cannot be read, parsed or rendered yields a `BadRecord` in its place. So each record yields exactly one
item: a document, a `BadRecord`, or a `LeftOut`.
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
    """A text to encode.

    key: the bytes from which the content hash is computed.
    origin: the record that it comes from.
    is_chat: the text is complete as rendered; a plain text still gets its end-of-document token.
    loss: character ranges [start, end) that carry loss; None means all of the text.
    rejected: the rejected conversation of a preference pair, of which this document is the chosen one. Both have the
        same key, so the pair stays in one split.
    dropped: content that the chat template left out, as one example for each kind.
    spelled: ranges of special tokens that are written in the conversation itself.
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
    """A record that is left out because its label marks the answer as bad."""

    origin: Record


def find_source_shape(item: Input, skip_bad_records: bool = False) -> Shape:
    """Find the kind of a source and its keys from its first good record, and log them.

    If its first SHAPE_RECORDS records are all bad and `skip_bad_records`, the kind is that of the recipe, or text. So
    each bad record is counted with its reason. Without `skip_bad_records`, raises UserError that names the first one.
    """
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
    logger.warning(
        "data.sources.%d: none of the first %d records can be used, read as text",
        item.index,
        len(reasons),
    )
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
    kept = "; training uses the chosen answers, the store keeps the rejected ones" if shape.kind == "preference" else ""
    if layout is not None and "label" in layout.keys:
        kept = f"; records whose {layout.keys['label']!r} marks the answer as bad are left out and counted"
    keys = f"; {layout.describe(record.value)}" if layout is not None and isinstance(record.value, dict) else ""
    split = _describe_delimiter(item, record)
    what = f"kind {shape.kind}{key} ({how}){kept}{keys}{split}"
    logger.info("data.sources.%d: %s, %s, %s", item.index, item.section.path, files, what)


def find_unused_keys(item: Input, shape: Shape) -> list[str]:
    """Keys of a source's first good record that are not used."""
    for record in _first_records(item):
        if isinstance(record, Record) and (layout := _find_used(record, shape)) is not None:
            return find_unused(layout, record.value)
    return []


def _find_used(record: Record, shape: Shape) -> Layout | None:
    """The keys of a record that are used; None if it has no keys or cannot be parsed."""
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
    """Parse the records of some spans of one source; yield each content with its record."""
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
    """Parse and render the records of some spans of one source."""
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
    # The hash is of the messages, so a document keeps its split when the template changes.
    try:
        key = orjson.dumps([content.messages, content.tools], option=orjson.OPT_SORT_KEYS)
    except TypeError as error:  # bytes in a column, or objects that are nested too deeply for the JSON writer
        raise RecordError(f"a message or tool cannot be written as JSON ({error})") from None
    rendered = template.render(content, train_on)
    if rendered.loss is not None and not any(start < end for start, end in rendered.loss):
        raise RecordError("no turn carries loss")
    chat = {"is_chat": True, "loss": rendered.loss, "dropped": rendered.dropped, "spelled": rendered.spelled}
    return Document(rendered.text, key, record, **chat)


def _refuse(record: Record, error: RecordError) -> BadRecord:
    return BadRecord(record.path, record.unit, record.number, str(error))


def text_of(content: Content) -> str:
    """Return the text of a content without a template, for training a tokenizer; "" for a record that is left out."""
    if isinstance(content, str):
        return content
    if isinstance(content, LabelledFalse):
        return ""
    if isinstance(content, Preference):
        return f"{text_of(content.chosen)}\n{content.rejected.messages[-1]['content']}"
    return "\n".join(message["content"] for message in content.messages if message["content"])
