"""Raw sources as a stream of documents, with no store: what is read together, and how.

A *unit* is what one reader works on at a time: about 16 MiB of files, from each source its share, so that a source's
documents are spread over the whole pass however many sources there are. Units are cut by size alone (lines at line
ends, Parquet by row groups), so a plan costs one small read per unit and nothing is hashed; what cannot be cut (a
compressed file, a source with a limit) is of one unit as a whole. A streamed dataset is cut by its shards.

A unit is read as *blocks* of 16 MiB of text, the unit of packing, so memory does not depend on how large it is.
"""

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.build import BuildSpec, EncodedDocuments, PartResult, encode_part, refuse
from data_prep.chunks import LINE_FORMATS
from data_prep.documents import parse_records, text_of
from data_prep.errors import UserError
from data_prep.files import COMPRESSIONS, READ_ERRORS, BadRecord, Span
from data_prep.fingerprint import name_of
from data_prep.huggingface import count_shards
from data_prep.kinds import Shape
from data_prep.options import DataSection
from data_prep.parts import Part
from data_prep.sources import Input, SourceFile
from data_prep.store import SPLITS, Split

UNIT_BYTES = 16 * 2**20
SAMPLE_UNITS = 64
SHARE_BYTES = 256 * 2**10  # a source smaller than this per unit is not spread over all of them
BLOCK_BYTES = 16 * 2**20
COUNTED = ("documents", "bad_records", "too_short", "too_long")
# What may change between sessions without changing a row.
NOT_OF_THE_ROWS = {
    "sources", "store_dir", "num_proc", "num_workers", "streaming", "validation_rows", "on_bad_record", "max_bad_share",
    "verify_packing", "executor", "ray_address",
}  # fmt: skip


@dataclass(frozen=True)
class Share:
    """A part of a unit, and about how many bytes it has: shares are read side by side in proportion to them."""

    part: Part
    size: float


Unit = tuple[Share, ...]


@dataclass(frozen=True)
class StreamPlan:
    """Small enough to be given to every worker process. `fingerprint` names all that makes the rows."""

    units: tuple[Unit, ...]
    validation_units: tuple[Unit, ...]
    spec: BuildSpec
    skip_bad_records: bool
    fingerprint: str


@dataclass
class Block:
    """Documents of one split in the store's schema. `counts`: records that were read for it, by what became of them
    (`COUNTED`; documents of any split)."""

    tables: list[pa.RecordBatch] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    bad_records: list[BadRecord] = field(default_factory=list)
    text_bytes: int = 0


def plan_stream(inputs: list[Input], data: DataSection, spec: BuildSpec) -> StreamPlan:
    """Units of the sources that are trained on, and of those that documents are held out from. Raises UserError."""
    trained = [item for item in inputs if item.section.split != "validation"]
    if not trained:
        raise UserError("data.sources: each has split: validation, none is left to train on")
    files = [[[file.format, file.size] for file in item.files] for item in inputs]
    sections = [section.model_dump(exclude={"path"}) for section in data.sources]
    options = data.model_dump(mode="json", exclude=NOT_OF_THE_ROWS)
    made_with = [spec.tokenizer_fingerprint, spec.template, spec.encoder]
    return StreamPlan(
        plan_units(trained),
        plan_units([item for item in inputs if item.section.split != "train"]),
        replace(spec, skip_bad_records=True),  # refused here, where the line in the file can be told
        data.on_bad_record == "skip",
        name_of([files, sections, options, made_with]),
    )


def plan_units(inputs: list[Input]) -> tuple[Unit, ...]:
    """Units of about `UNIT_BYTES`, in the order of the files."""
    sizes = [max(1, sum(map(_guess_size, item.files))) for item in inputs]
    count = -(-sum(sizes) // UNIT_BYTES)
    units: list[list[Share]] = [[] for _ in range(count)]
    for item, size in zip(inputs, sizes, strict=True):
        parts = _cut_source(item, max(-(-size // count), SHARE_BYTES))
        for number, part in enumerate(parts):
            units[number * count // len(parts)].append(Share(part, size / len(parts)))
    return tuple(tuple(unit) for unit in units if unit)


def _guess_size(file: SourceFile) -> int:
    """Bytes; of a streamed dataset nobody knows, and a unit per shard is taken."""
    return UNIT_BYTES * count_shards(file.path) if file.format == "hf_stream" else file.size


def _cut_source(item: Input, size: int) -> list[Part]:
    section = item.section
    if section.max_documents is not None or section.max_tokens is not None:  # "the first N" needs one reader
        spans = tuple(Span(file.path, file.format) for file in item.files)
        return [Part(0, item.index, spans, section.max_documents, section.max_tokens)]
    parts: list[Part] = []
    group: list[Span] = []
    left = size
    for file in item.files:
        if file.size > left and group:
            parts.append(Part(0, item.index, tuple(group)))
            group, left = [], size
        if file.size > size or file.format == "hf_stream":
            parts += [Part(0, item.index, (span,)) for span in _cut_file(file, size)]
        else:
            group.append(Span(file.path, file.format))
            left -= file.size
    return [*parts, Part(0, item.index, tuple(group))] if group else parts


def _cut_file(file: SourceFile, size: int) -> Iterator[Span]:
    compressed = Path(file.path).suffix.lower() in COMPRESSIONS
    if file.format == "hf_stream":
        yield from (Span(file.path, file.format, shard, shard + 1) for shard in range(count_shards(file.path)))
    elif file.format in LINE_FORMATS and not compressed:
        yield from _cut_lines(file, size)
    elif file.format == "parquet" and not compressed:
        yield from _cut_parquet(file, size)
    else:
        yield Span(file.path, file.format)


def _cut_lines(file: SourceFile, size: int) -> Iterator[Span]:
    with open(file.path, "rb") as opened:
        start = 0
        while start < file.size:
            opened.seek(min(start + size, file.size) - 1)
            while (read := opened.readline(1 << 20)) and not read.endswith(b"\n"):
                pass
            yield Span(file.path, file.format, start, opened.tell())
            start = opened.tell()


def _cut_parquet(file: SourceFile, size: int) -> Iterator[Span]:
    try:
        groups = pq.read_metadata(file.path).num_row_groups
    except READ_ERRORS:  # the reader reports it, with the place
        groups = 1
    step = max(1, groups * size // file.size)
    for start in range(0, groups, step):
        yield Span(file.path, file.format, start, min(start + step, groups))


def sample_texts(inputs: list[Input], shapes: Sequence[Shape], max_bytes: int) -> list[str]:
    """Good texts from the beginnings of units spread evenly, about `max_bytes` of them in all."""
    units = plan_units(inputs)
    places = np.linspace(0, len(units), min(len(units), SAMPLE_UNITS), endpoint=False).astype(int)
    texts: list[str] = []
    for unit in (units[place] for place in places):
        size = sum(share.size for share in unit)
        for share in unit:
            limit = max_bytes / len(places) * share.size / size
            texts += _take_texts(share.part, shapes[share.part.source], limit)
    return texts


def _take_texts(part: Part, shape: Shape, max_bytes: float) -> Iterator[str]:
    count = 0
    for found in parse_records(part.spans, shape):
        if isinstance(found, BadRecord):
            continue
        text = text_of(found[1])
        yield text
        count += 1
        max_bytes -= len(text.encode())
        if max_bytes <= 0 or count == part.max_documents:
            return


def read_blocks(unit: Unit, plan: StreamPlan, split: Split) -> Iterator[Block]:
    """The documents of a unit; the last block may hold none. Raises UserError at a bad record unless those are to be
    skipped, and for whatever else stops a build."""
    merge = _Merge(unit, plan)
    block = Block()
    for encoded in merge:
        table, _ = encoded.of_split(split)
        if table.num_rows:
            # A few rows of a batch as views would keep all of it in memory.
            few = 2 * table.num_rows < encoded.table.num_rows
            block.tables.append(table.take(pa.array(np.arange(table.num_rows))) if few else table)
        block.counts["documents"] += int(np.isin(encoded.splits, SPLITS).sum())
        block.text_bytes += int(encoded.text_bytes.sum())
        if block.text_bytes >= BLOCK_BYTES:
            merge.move_left_out(block)
            yield block
            block = Block()
    merge.move_left_out(block)
    yield block


class _Merge:
    """Batches of all shares of a unit; always the next of the share that has got least far in its size."""

    def __init__(self, unit: Unit, plan: StreamPlan):
        self._unit = unit
        self._skip = plan.skip_bad_records
        self._results = [PartResult(share.part.index, share.part.source) for share in unit]
        self._readers = [
            encode_part(share.part, plan.spec, result) for share, result in zip(unit, self._results, strict=True)
        ]

    def __iter__(self) -> Iterator[EncodedDocuments]:
        heap = [(0.0, index) for index in range(len(self._unit))]
        while heap:
            progress, index = heap[0]
            encoded = next(self._readers[index], None)
            if encoded is None:
                heapq.heappop(heap)
                continue
            heapq.heapreplace(heap, (progress + float(encoded.text_bytes.sum()) / self._unit[index].size, index))
            yield encoded

    def move_left_out(self, block: Block) -> None:
        """Count with a block what was left out since the last one. Raises UserError as `read_blocks`."""
        for share, result in zip(self._unit, self._results, strict=True):
            for record in result.bad_records:
                refuse(_locate(record, share.part, not self._skip), block.bad_records, self._skip)
            left_out = {"too_short": result.too_short, "too_long": result.too_long}
            block.counts.update(left_out, bad_records=len(result.bad_records))
            result.bad_records, result.too_short, result.too_long = [], 0, 0


def _locate(record: BadRecord, part: Part, exact: bool) -> BadRecord:
    """The record with its place in the file, where its line was counted from the beginning of a span.

    Exactly costs a read of the file up to there (3 GB/s): worth it for the one record at which a run stops.
    """
    starts = [span.start for span in part.spans if span.path == record.path and span.format in LINE_FORMATS]
    if record.unit != "line" or not any(starts):
        return record
    if exact:
        number = record.number + _count_lines(record.path, starts[0])
        return BadRecord(record.path, "line", number, record.reason)
    return BadRecord(record.path, f"from byte {starts[0]} on, line", record.number, record.reason)


def _count_lines(path: str, end: int) -> int:
    count = 0
    with open(path, "rb") as file:
        while end > 0 and (block := file.read(min(end, 1 << 20))):
            count += block.count(b"\n")
            end -= len(block)
    return count
