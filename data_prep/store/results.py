"""Saves and reuses the results of parts: `STORE/parts/FINGERPRINT.json`, written after the shards of the part.

Results stay when the store is complete. A build continues from the results in its own directory. It also reuses those
that it needs from the other stores in the same `data.store_dir`, complete or not. Shards are hard links (or copies, if
the file system has no links), so removing one store does not affect another.
A part's fingerprint covers everything on which its result depends, but no paths. So bad records are saved by their
distance from the start of their span; their place is computed from where the span is now. If only the position of the
source in `data.sources` differs, shards are copied with a changed column `source`.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.atomic_files import sync
from data_prep.errors import UserError
from data_prep.read.files import BadRecord
from data_prep.read.fingerprint import hash_file
from data_prep.read.parts import Part
from data_prep.render.noticed import Noticed
from data_prep.store.arrow import to_arrow
from data_prep.store.document_table import DocumentTable
from data_prep.store.statistics import count_tokens
from data_prep.store.store import SCHEMA, Shard
from data_prep.store.writing import ShardWriter, explain_write_errors, place_copy, write_atomically

logger = logging.getLogger("redline.data")

FOLDER = "parts"

TokenCounts = dict[str, NDArray[np.int64]]


@dataclass
class PartResult:
    """The result of one part: its shards, bad records, and numbers of documents that were left out by reason.

    fallbacks: number of documents that HF tokenizers encoded instead of gigatoken.
    noticed: warnings about documents that are in the shards.
    token_counts: occurrences of each id by split, (vocab_size,); not saved on disk.
    """

    part: int
    source: int
    shards: list[Shard] = field(default_factory=list)
    bad_records: list[BadRecord] = field(default_factory=list)
    num_bad_records: int = 0
    duplicates: int = 0
    too_short: int = 0
    too_long: int = 0
    labelled_false: int = 0
    fallbacks: int = 0
    noticed: Noticed = field(default_factory=Noticed)
    token_counts: TokenCounts = field(default_factory=dict)

    def forget_lists(self) -> None:
        """Free memory: bad records are on disk, and token counts have been added up."""
        self.bad_records, self.token_counts = [], {}


def _path(directory: Path, part: Part) -> Path:
    return directory / FOLDER / f"{part.fingerprint}.json"


def save_result(directory: Path, part: Part, result: PartResult) -> None:
    """Flush a part's shards to disk, then save its result, which marks it as finished. Raises WriteError."""
    with explain_write_errors(directory):
        for shard in result.shards:
            sync(directory / shard.name)
    result.num_bad_records = len(result.bad_records)
    bad_records = [_to_relative(record, part) for record in result.bad_records]
    kept = asdict(replace(result, bad_records=[], token_counts={}, noticed=Noticed()))
    examples = {kind: _to_relative(record, part) for kind, record in result.noticed.examples.items()}
    kept["noticed"] = {"counts": result.noticed.counts, "examples": examples}
    # Not flushed: if a power failure damages it, it is not valid JSON, and the part is built again.
    write_atomically(_path(directory, part), orjson.dumps({**kept, "bad_records": bad_records}), durable=False)


def load_result(directory: Path, part: Part) -> PartResult | None:
    """Load the result of a part that was finished in `directory`; None if it is missing, damaged or does not fit."""
    try:
        value = orjson.loads(_path(directory, part).read_bytes())
        shards = [Shard(**shard) for shard in value.pop("shards")]
        bad_records = [_to_absolute(record, part) for record in value.pop("bad_records")]
        noticed = value.pop("noticed")
        examples = {kind: _to_absolute(record, part) for kind, record in noticed["examples"].items()}
        value["noticed"] = Noticed(noticed["counts"], examples)
        if any((directory / shard.name).stat().st_size != shard.file_bytes for shard in shards):
            return None
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, _MovedError):
        return None
    return PartResult(**{**value, "part": part.index, "shards": shards, "bad_records": bad_records})


class _MovedError(Exception):
    """The place of a bad record cannot be computed, because its span has moved."""


def _to_relative(record: BadRecord, part: Part) -> list[Any]:
    """Encode a bad record as [span, start of the span, distance from its first line, unit, reason]."""
    index = max(i for i, s in enumerate(part.spans) if s.path == record.path and s.first_line <= record.number)
    span = part.spans[index]
    return [index, span.start, record.number - span.first_line, record.unit, record.reason]


def _to_absolute(record: list[Any], part: Part) -> BadRecord:
    index, start, distance, unit, reason = record
    span = part.spans[index]
    if unit != "line" and start != span.start:  # the unit contains a place, such as the byte of a row group
        raise _MovedError
    return BadRecord(span.path, unit, span.first_line + distance, reason)


def find_results(
    directory: Path, parts: Sequence[Part], vocab_size: int, skip_bad_records: bool
) -> dict[str, PartResult]:
    """Find results of parts in `directory` and in its sibling stores; link or copy those of siblings, and log them.

    Returns results by fingerprint. Results with bad records are used only if `skip_bad_records`. Shards are read once
    to count tokens, and damaged ones are not used. Raises WriteError.
    """
    wanted = {part.fingerprint: part for part in parts}
    found: dict[str, PartResult] = {}
    for sibling in [directory, *_find_siblings(directory)]:
        number = len(found)
        finished = _list_finished(sibling)
        by_content = {_content_of(name): name for name in sorted(finished)}
        for name, part in list(wanted.items()):
            there = name if name in finished else by_content.get(_content_of(name))
            result = there and load_result(sibling, replace(part, fingerprint=there))
            if not result or (result.num_bad_records and not skip_bad_records):
                continue
            if _count(sibling, result, vocab_size) and _take_over(sibling, directory, part, result):
                found[name] = result
                del wanted[name]
        _log(sibling, directory, len(found) - number, len(found) + len(wanted))
    return found


def _content_of(fingerprint: str) -> str:
    """Return a part's fingerprint without the number of its source."""
    return fingerprint.rpartition("-")[0]


def _log(sibling: Path, directory: Path, count: int, parts: int) -> None:
    if count and sibling == directory:
        logger.info("store: continuing a stopped build, %d of %d parts are complete", count, parts)
    elif count:
        logger.info("store: %d of %d parts are unchanged, reused from %s", count, parts, sibling)


def _find_siblings(directory: Path) -> Iterator[Path]:
    """Find the other stores, newest first, because the newest shares most with a growing input."""
    stores = [path.parent for path in directory.parent.glob(f"*/{FOLDER}") if path.parent != directory]
    return iter(sorted(stores, key=lambda path: path.stat().st_mtime_ns, reverse=True))


def _list_finished(store: Path) -> set[str]:
    try:
        return {name.removesuffix(".json") for name in os.listdir(store / FOLDER)}
    except OSError:
        return set()


def _count(store: Path, result: PartResult, vocab_size: int) -> bool:
    for shard in result.shards:
        try:
            if hash_file(store / shard.name) != shard.hash:
                return False
            table = DocumentTable.open([store / shard.name], np.array([shard.documents]))
            result.token_counts[shard.split] = count_tokens(table, vocab_size)
        except (pa.ArrowException, OSError, ValueError, UserError):
            return False
    return True


def _take_over(sibling: Path, directory: Path, part: Part, result: PartResult) -> bool:
    """Link or copy the files of a part to `directory`; False if the other store is removed at the same time."""
    if result.source == part.source and sibling == directory:
        return True
    with explain_write_errors(directory):
        try:
            if result.source != part.source:
                result.source = part.source
                result.shards = [_copy_shard(sibling, directory, shard, part) for shard in result.shards]
                save_result(directory, part, result)
                return True
            for name in [*(shard.name for shard in result.shards), _path(Path(), part)]:
                place_copy(sibling / name, directory / name)
        except FileNotFoundError:
            return False
    return True


def _copy_shard(sibling: Path, directory: Path, shard: Shard, part: Part) -> Shard:
    """Copy a shard with this part's source number, one batch at a time."""
    text_bytes = shard.text_bytes
    with (
        ShardWriter(directory, shard.split, part.fingerprint) as writer,
        pa.memory_map(str(sibling / shard.name)) as file,
        pa.ipc.open_stream(file) as reader,
    ):
        place = SCHEMA.get_field_index("source")
        for batch in reader:
            written = batch.column(place).buffers()[1].size // 4  # keep the buffer size, which can exceed the rows
            numbers = to_arrow(np.full(written, part.source, np.int32)).slice(0, len(batch))
            writer.write(batch.set_column(place, SCHEMA.field(place), numbers), text_bytes)
            text_bytes = 0  # the size of all batches is counted with the first
        copied = writer.close()
    assert copied is not None, f"{sibling / shard.name}: contains no document"
    return copied
