"""Plans how raw sources are read as a stream of documents, without a store.

A *unit* is what one reader reads at a time: about 16 MiB of files, with a share of each source, so that the documents
of every source are spread over the whole pass. Units are cut by size (files of lines at line ends, Parquet between row
groups, a streamed dataset between shards), so a plan costs a few small reads per file and unit. What cannot be cut (a
compressed file, a source with a limit) belongs to one unit. `blocks` reads units.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import xxhash

from data_prep.errors import UserError
from data_prep.options import DataSection
from data_prep.parse.kinds import Shape
from data_prep.read.chunks import LINE_FORMATS
from data_prep.read.files import COMPRESSIONS, READ_ERRORS, BadRecord, Span
from data_prep.read.fingerprint import name_of
from data_prep.read.huggingface import count_shards
from data_prep.read.parts import Part
from data_prep.read.sources import Input, SourceFile
from data_prep.render.documents import parse_records, text_of
from data_prep.store.build import BuildSpec

UNIT_BYTES = 16 * 2**20
SAMPLE_UNITS = 64
EDGE_BYTES = 64 * 2**10
SAMPLE_BYTES = 4 * 2**10
SHARE_BYTES = 256 * 2**10  # least size of a source in a unit; a small source is not in every unit
# Options that may change between sessions without changing a row. The template is named by its text instead.
NOT_OF_THE_ROWS = {
    "sources", "store_dir", "num_proc", "num_workers", "streaming", "validation_rows", "on_bad_record", "max_bad_share",
    "verify", "verify_packing", "executor", "ray_address", "chat_template", "pad_to_multiple_of",
}  # fmt: skip


@dataclass(frozen=True)
class Share:
    """A part of a unit, with its approximate size in bytes; shares are interleaved in proportion to their sizes."""

    part: Part
    size: float


Unit = tuple[Share, ...]


@dataclass(frozen=True)
class StreamPlan:
    """What a stream reads; small enough to be sent to every worker process.

    order: everything on which the rows and their order depend, as JSON values by names that a user knows.

    In `order`, a file is described by its format, its size and samples of its content: the first and last 64 KiB, and
    4 KiB every 16 MiB. A streamed dataset is described by its name and number of shards. So every change is detected in
    a file of up to 128 KiB. In a larger file, a change of size or of the sampled bytes is detected, but not a change of
    other bytes.
    """

    units: tuple[Unit, ...]
    validation_units: tuple[Unit, ...]
    spec: BuildSpec
    skip_bad_records: bool
    order: dict[str, Any]


def plan_stream(inputs: list[Input], data: DataSection, spec: BuildSpec) -> StreamPlan:
    """Plan the units for training and those for validation. Raises UserError when no source is for training."""
    trained = [item for item in inputs if item.section.split != "validation"]
    if not trained:
        raise UserError("data.sources: every source has split: validation, so there is nothing to train on")
    return StreamPlan(
        plan_units(trained),
        plan_units([item for item in inputs if item.section.split != "train"]),
        replace(spec, skip_bad_records=True),  # `read_blocks` refuses bad records and finds their lines
        data.on_bad_record == "skip",
        _describe_order(inputs, data, spec),
    )


def _describe_order(inputs: list[Input], data: DataSection, spec: BuildSpec) -> dict[str, Any]:
    options = data.model_dump(mode="json", exclude=NOT_OF_THE_ROWS)
    return {
        "content of data.sources": name_of([[_sample_content(file) for file in item.files] for item in inputs]),
        "data.sources": [source.model_dump(exclude={"path"}, exclude_defaults=True) for source in data.sources],
        "tokenizer": spec.tokenizer_fingerprint,
        "chat template": name_of(spec.template),
        "encoder": spec.encoder,
        **{f"data.{key}": value for key, value in options.items()},
    }


def _sample_content(file: SourceFile) -> list[Any]:
    """Describe a file as `StreamPlan` says. Raises UserError when it cannot be read."""
    if file.format == "hf_stream":
        return [file.format, file.path, count_shards(file.path)]
    state = xxhash.xxh3_128()
    edges = ((0, EDGE_BYTES), (max(EDGE_BYTES, file.size - EDGE_BYTES), EDGE_BYTES))
    between = ((start, SAMPLE_BYTES) for start in range(UNIT_BYTES, file.size, UNIT_BYTES))
    try:
        with open(file.path, "rb", buffering=0) as opened:
            for start, size in (*edges, *between):
                state.update(os.pread(opened.fileno(), size, start))
    except OSError as error:
        raise UserError(f"data.sources: {file.path} cannot be read ({error.strerror or error})") from None
    return [file.format, file.size, state.hexdigest()]


def plan_units(inputs: list[Input]) -> tuple[Unit, ...]:
    """Divide sources into units of about `UNIT_BYTES`, in the order of the files."""
    sizes = [max(1, sum(map(_guess_size, item.files))) for item in inputs]
    count = -(-sum(sizes) // UNIT_BYTES)
    units: list[list[Share]] = [[] for _ in range(count)]
    for item, size in zip(inputs, sizes, strict=True):
        parts = _cut_source(item, max(-(-size // count), SHARE_BYTES))
        for number, part in enumerate(parts):
            units[number * count // len(parts)].append(Share(part, size / len(parts)))
    return tuple(tuple(unit) for unit in units if unit)


def _guess_size(file: SourceFile) -> int:
    """Size in bytes. That of a streamed dataset is unknown, so each shard counts as a unit."""
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
    """Read good texts from the start of evenly spread units, about `max_bytes` in total."""
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
        if not text:
            continue
        yield text
        count += 1
        max_bytes -= len(text.encode())
        if max_bytes <= 0 or count == part.max_documents:
            return
