"""One part of the plan to its shards: read, parse, render, tokenize, write. A pure function that any process can run.

Memory is bounded by a batch (4 MB of text, or one document if that is larger), whatever the size of the input. The
result is written as `part-00000.json` after its shards, so a build that was stopped goes on with the parts missing.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa

from data_prep.chat import ChatTemplate
from data_prep.documents import Document, read_documents
from data_prep.encoding import EncodedBatch, Encoder, EncoderName
from data_prep.errors import UserError
from data_prep.fingerprint import hash_text
from data_prep.kinds import Shape
from data_prep.options import SplitChoice, TrainOn
from data_prep.records import BadRecord
from data_prep.sources import Part
from data_prep.store import SCHEMA, Shard, ShardWriter, Split, write_atomically
from data_prep.tokenizer import load_tokenizer

BATCH_CHARACTERS = 4 * 2**20
BATCH_DOCUMENTS = 8192


@dataclass(frozen=True)
class BuildSpec:
    """What a worker needs besides its part; small and picklable. `shapes` and `splits` go by source."""

    directory: Path
    tokenizer_dir: Path
    tokenizer_fingerprint: str
    template: str
    encoder: EncoderName
    train_on: TrainOn
    validation_share: float
    skip_bad_records: bool
    shapes: tuple[Shape, ...]
    splits: tuple[SplitChoice, ...]


@dataclass
class PartResult:
    """What became of one part: shards written, records refused."""

    part: int
    source: int
    shards: list[Shard] = field(default_factory=list)
    bad_records: list[BadRecord] = field(default_factory=list)


def result_path(directory: Path, part: int) -> Path:
    return directory / f"part-{part:05d}.json"


def load_result(directory: Path, part: int) -> PartResult | None:
    """Result of a part that an earlier build finished."""
    try:
        value = orjson.loads(result_path(directory, part).read_bytes())
    except FileNotFoundError:
        return None
    shards = [Shard(**shard) for shard in value["shards"]]
    if any((directory / shard.name).stat().st_size != shard.file_bytes for shard in shards):
        return None
    return PartResult(value["part"], value["source"], shards, [BadRecord(**bad) for bad in value["bad_records"]])


def build_part(part: Part, spec: BuildSpec) -> PartResult:
    """Write the shards of a part. Raises UserError at the first bad record unless those are to be skipped."""
    encoder = _load_encoder(spec.tokenizer_dir, spec.tokenizer_fingerprint, spec.encoder)
    template = ChatTemplate(spec.template, encoder.tokenizer.special_tokens)
    documents = read_documents(part.spans, spec.shapes[part.source], template, spec.train_on)
    result = PartResult(part.index, part.source)
    with (
        ShardWriter(spec.directory, "train", part.index) as train,
        ShardWriter(spec.directory, "validation", part.index) as validation,
    ):
        writers: dict[Split, ShardWriter] = {"train": train, "validation": validation}
        good = _take_good(documents, part.max_documents, result.bad_records, spec.skip_bad_records)
        for batch, encoded in _encode(good, encoder, part.max_tokens):
            _write(batch, encoded, part.source, spec, writers, result.bad_records)
        result.shards = [shard for writer in writers.values() if (shard := writer.close())]
    write_atomically(result_path(spec.directory, part.index), orjson.dumps(asdict(result)))
    return result


@lru_cache(maxsize=1)
def _load_encoder(directory: Path, fingerprint: str, name: EncoderName) -> Encoder:
    """Loaded once a process; `fingerprint` makes it anew when the files have changed."""
    return Encoder(load_tokenizer(directory), name)


def _take_good(
    documents: Iterable[Document | BadRecord], limit: int | None, bad: list[BadRecord], skip: bool
) -> Iterator[Document]:
    count = 0
    for document in documents:
        if isinstance(document, BadRecord):
            _refuse(document, bad, skip)
            continue
        yield document
        count += 1
        if count == limit:
            return


def _refuse(record: BadRecord, bad: list[BadRecord], skip: bool) -> None:
    if not skip:
        raise UserError(f"{record} (data.on_bad_record: skip leaves such records out and lists them)")
    bad.append(record)


def _encode(
    documents: Iterable[Document], encoder: Encoder, max_tokens: int | None
) -> Iterator[tuple[list[Document], EncodedBatch]]:
    """Encoded batches; stops before the document with which the source would pass `max_tokens`."""
    left = max_tokens
    for batch in _batched(documents):
        encoded = encoder.encode_documents(batch)
        if left is None:
            yield batch, encoded
            continue
        count = int(np.searchsorted(encoded.offsets, left, side="right")) - 1
        yield batch[:count], encoded.head(count)
        left -= int(encoded.offsets[count])
        if count < len(batch):
            return


def _batched(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS or len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write(
    batch: list[Document],
    encoded: EncodedBatch,
    source: int,
    spec: BuildSpec,
    writers: dict[Split, ShardWriter],
    bad: list[BadRecord],
) -> None:
    hashes = [hash_text(document.key) for document in batch]
    splits = _choose_splits(hashes, spec.splits[source], spec.validation_share)
    silent = np.array([runs is not None and not len(runs) for runs in encoded.loss_runs], bool)
    for index in np.flatnonzero(silent):
        origin = batch[index].origin
        reason = "no token carries loss"
        _refuse(BadRecord(origin.path, origin.unit, origin.number, reason), bad, spec.skip_bad_records)
    table = build_record_batch(encoded, source, hashes)
    sizes = np.array([len(document.text.encode()) for document in batch], np.int64)
    for name, writer in writers.items():
        chosen = (splits == name) & ~silent
        writer.write(table.filter(pa.array(chosen)), int(sizes[chosen].sum()))


def _choose_splits(hashes: list[bytes], choice: SplitChoice, validation_share: float) -> np.ndarray:
    """Split of each document by its content alone, so that it never moves when data is added."""
    if choice != "auto":
        return np.full(len(hashes), choice)
    words = np.frombuffer(b"".join(hashes), "<u8")[::2]
    return np.where(words < validation_share * 2.0**64, "validation", "train")


def build_record_batch(encoded: EncodedBatch, source: int, hashes: list[bytes]) -> pa.RecordBatch:
    """One Arrow batch of the store's schema."""
    run_lengths = [0 if runs is None else len(runs) for runs in encoded.loss_runs]
    run_offsets = np.concatenate([[0], np.cumsum(run_lengths)]).astype(np.int32)
    run_values = [runs for runs in encoded.loss_runs if runs is not None]
    flat_runs = np.concatenate(run_values) if run_values else np.empty(0, np.int32)
    missing = pa.array([runs is None for runs in encoded.loss_runs], pa.bool_())
    columns = [
        pa.ListArray.from_arrays(pa.array(encoded.offsets.astype(np.int32)), pa.array(encoded.ids)),
        pa.ListArray.from_arrays(pa.array(run_offsets), pa.array(flat_runs, pa.int32()), mask=missing),
        pa.array(np.full(len(hashes), source, np.int32)),
        pa.array(hashes, pa.binary(16)),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
