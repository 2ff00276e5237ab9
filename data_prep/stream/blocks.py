"""A unit of a stream as *blocks* of 16 MiB of text, the unit of packing: memory does not depend on how large a unit is.

The sources of a unit are read side by side, so that a block holds each of them in proportion to what the unit does.
"""

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from data_prep.read.chunks import LINE_FORMATS
from data_prep.read.files import BadRecord
from data_prep.read.parts import Part
from data_prep.store.build import EncodedDocuments, PartResult, encode_part, refuse
from data_prep.store.store import SPLITS, Split
from data_prep.stream.stream import StreamPlan, Unit

BLOCK_BYTES = 16 * 2**20
COUNTED = ("documents", "bad_records", "too_short", "too_long", "labelled_false")


@dataclass
class Block:
    """Documents of one split in the store's schema. `counts`: records that were read for it, by what became of them
    (`COUNTED`; documents of any split)."""

    tables: list[pa.RecordBatch] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    bad_records: list[BadRecord] = field(default_factory=list)
    text_bytes: int = 0


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
            left_out = {name: getattr(result, name) for name in COUNTED[2:]}
            block.counts.update(left_out, bad_records=len(result.bad_records))
            result.bad_records, result.too_short, result.too_long, result.labelled_false = [], 0, 0, 0


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
