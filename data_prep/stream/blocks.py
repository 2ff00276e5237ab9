"""Reads a unit of a stream as *blocks* of 16 MiB of text, which are packed one at a time.

So memory does not depend on the size of a unit. The sources of a unit are interleaved, so that each block contains them
in the proportions of the unit.
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
    """Documents of one split in the store's schema.

    counts: records that were read for the block, by result (`COUNTED`); documents of other splits count, too.
    text_bytes: UTF-8 size of all documents that were read for it.
    """

    tables: list[pa.RecordBatch] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    bad_records: list[BadRecord] = field(default_factory=list)
    text_bytes: int = 0


def read_blocks(unit: Unit, plan: StreamPlan, split: Split) -> Iterator[Block]:
    """Read the documents of a unit; the last block may be empty.

    Raises UserError at a bad record unless `plan.skip_bad_records`, and for other errors that stop a build.
    """
    merge = _Merge(unit, plan)
    block = Block()
    for encoded in merge:
        table, _ = encoded.of_split(split)
        if table.num_rows:
            # A view of a few rows would keep the whole batch in memory.
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
    """Interleaves the batches of all shares of a unit: the next batch is of the share with the least progress."""

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
        """Add what was left out since the last block to `block`. Raises UserError as `read_blocks` does."""
        for share, result in zip(self._unit, self._results, strict=True):
            for record in result.bad_records:
                refuse(_locate(record, share.part, not self._skip), block.bad_records, self._skip)
            left_out = {name: getattr(result, name) for name in COUNTED[2:]}
            block.counts.update(left_out, bad_records=len(result.bad_records))
            result.bad_records, result.too_short, result.too_long, result.labelled_false = [], 0, 0, 0


def _locate(record: BadRecord, part: Part, exact: bool) -> BadRecord:
    """Correct the line number of a record, which was counted from the start of its span.

    exact: count the lines of the file before the span. This reads the file up to there (3 GB/s), so it is for the one
    record at which a run stops. Otherwise the result names the byte at which the span begins.
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
