"""Builds the shards of one part: reads, parses, renders, tokenizes and writes its documents, in any process.

Memory is bounded by a batch (4 MB of text, or one larger document), independent of the input size. While tokens are
written, they are counted and compared with the vocabulary size; no shard is read again.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.encode.encoding import EncodedBatch, Encoder, EncoderName
from data_prep.encode.template_choice import build_template
from data_prep.encode.tokenizer import load_tokenizer
from data_prep.errors import UserError
from data_prep.options import OnDropped, SpecialInText, SplitChoice, TrainOn
from data_prep.parse.kinds import Shape
from data_prep.read.files import refuse_changes
from data_prep.read.fingerprint import STORE_FORMAT, hash_text, name_of
from data_prep.read.parts import Part
from data_prep.read.records import BadRecord
from data_prep.render.documents import Document, LeftOut, read_documents
from data_prep.store.arrow import to_arrow, to_lists, view
from data_prep.store.results import PartResult
from data_prep.store.statistics import count_ids
from data_prep.store.store import REJECTED, REJECTED_SPLITS, SCHEMA, SPLITS, Split
from data_prep.store.writing import ShardWriter

BATCH_CHARACTERS = 4 * 2**20
BATCH_DOCUMENTS = 8192
# Bytes of input that one process encodes in a second, for texts and for records that a template renders. They only
# decide between one process and a pool; measured on a slow core (docs/experiments.md).
TEXT_SPEED: dict[EncoderName, float] = {"gigatoken": 8e7, "tokenizers": 1e6}
RENDERED_SPEED = 4e6


@dataclass(frozen=True)
class BuildSpec:
    """The settings of a build that workers need, besides their parts; small and picklable.

    `shapes` and `splits` are by source.
    """

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
    min_document_tokens: int | None = None
    max_document_tokens: int | None = None
    on_dropped_content: OnDropped = "refuse"
    special_tokens_in_text: SpecialInText = "text"


def estimate_seconds(parts: Sequence[Part], spec: BuildSpec) -> float:
    """Estimate roughly how many seconds one process needs to build the parts."""
    speed = TEXT_SPEED[spec.encoder]
    rendered = min(speed, RENDERED_SPEED)
    return sum(part.size / (speed if spec.shapes[part.source].kind == "text" else rendered) for part in parts)


# Fields of Part and BuildSpec that are paths or numbers of no effect on the result, or that are named in another way.
NOT_OF_THE_RESULT = {
    "index", "source", "spans", "size", "fingerprint",
    "directory", "tokenizer_dir", "skip_bad_records", "shapes", "splits",
}  # fmt: skip


def name_parts(parts: Sequence[Part], spec: BuildSpec) -> list[Part]:
    """Set the fingerprints of parts, which name their results independent of the paths of sources.

    A fingerprint ends with the number of the source, which every row contains. So an equal part of another source
    differs only in this number. `skip_bad_records` is not included: a finished part has no bad records, or they were
    skipped.
    """
    shared = _describe(spec)
    return [replace(part, fingerprint=_fingerprint(part, spec, shared)) for part in parts]


def _fingerprint(part: Part, spec: BuildSpec, shared: dict[str, Any]) -> str:
    source = {"shape": asdict(spec.shapes[part.source]), "split": spec.splits[part.source]}
    return f"{name_of([STORE_FORMAT, _describe(part), source, shared])}-{part.source}"


def _describe(value: Part | BuildSpec) -> dict[str, Any]:
    return {item.name: getattr(value, item.name) for item in fields(value) if item.name not in NOT_OF_THE_RESULT}


def build_part(part: Part, spec: BuildSpec) -> PartResult:
    """Write the shards of a part.

    Raises UserError at the first bad record unless `skip_bad_records`, when a file changed, and for ids outside of the
    vocabulary. Raises WriteError.
    """
    result = PartResult(part.index, part.source)
    vocab_size = find_encoder(spec).tokenizer.vocab_size
    with ExitStack() as stack:
        splits: tuple[Split, ...] = (*SPLITS, *REJECTED_SPLITS)
        writers: dict[Split, ShardWriter] = {
            name: stack.enter_context(ShardWriter(spec.directory, name, part.fingerprint)) for name in splits
        }
        for encoded in encode_part(part, spec, result):
            for name, writer in writers.items():
                table, size = encoded.of_split(name)
                if table.num_rows:
                    writer.write(table, size)
                    found = count_ids(view(table.column("ids").flatten()), vocab_size)
                    result.token_counts[name] = result.token_counts.get(name, 0) + found
        result.shards = [shard for writer in writers.values() if (shard := writer.close())]
    return result


@dataclass(frozen=True)
class EncodedDocuments:
    """Some documents of a part.

    table: rows of the store's schema.
    splits: split of each document, "" if it is left out; shape (documents,).
    text_bytes: UTF-8 size of each text; shape (documents,).
    """

    table: pa.RecordBatch
    splits: NDArray[np.str_]
    text_bytes: NDArray[np.int64]

    def of_split(self, name: Split) -> tuple[pa.RecordBatch, int]:
        """Return the documents of a split, and the size of their texts; copies only if they are not adjacent."""
        chosen = np.flatnonzero(self.splits == name)
        size = int(self.text_bytes[chosen].sum())
        if not len(chosen):
            return self.table.slice(0, 0), size
        if chosen[-1] - chosen[0] + 1 == len(chosen):
            return self.table.slice(chosen[0], len(chosen)), size
        return self.table.take(to_arrow(chosen)), size


def encode_part(part: Part, spec: BuildSpec, result: PartResult) -> Iterator[EncodedDocuments]:
    """Encode the documents of a part, one batch at a time, ordered by split; add what is left out to `result`.

    Raises UserError as `build_part` does.
    """
    encoder = find_encoder(spec)
    dropped = np.array(part.dropped, np.int64)
    number = 0
    for batch in read_batches(part, spec, result):
        begin, end = np.searchsorted(dropped, [number, number + len(batch)])
        documents, hashes, splits = _arrange(batch, dropped[begin:end] - number, spec.splits[part.source], spec)
        result.duplicates += int(end - begin)
        number += len(batch)
        if not documents:
            continue
        encoded = encoder.encode_documents(documents)
        result.fallbacks += encoded.fallbacks
        spelled = encoded.spelled if spec.special_tokens_in_text == "text" else {}
        for index, document in enumerate(documents):
            if document.dropped or index in spelled:
                result.noticed.add_document(document, spelled.get(index))
        _leave_out(documents, encoded, splits, spec, result)
        sizes = np.array([_count_bytes(document) for document in documents], np.int64)
        chosen = EncodedDocuments(build_record_batch(encoded, part.source, hashes), splits, sizes)
        yield chosen
        if rejected := [document.rejected for document in documents if document.rejected is not None]:
            yield _encode_rejected(rejected, chosen, encoder)


def read_batches(part: Part, spec: BuildSpec, result: PartResult) -> Iterator[list[Document]]:
    """Read the good documents of a part within its limits, in batches; add bad records to `result`.

    Raises UserError as `build_part` does, and at the end when a file changed since its content was hashed.
    """
    encoder = find_encoder(spec)
    template = build_template(spec.template, encoder.tokenizer, spec.on_dropped_content, spec.special_tokens_in_text)
    documents = read_documents(part.spans, spec.shapes[part.source], template, spec.train_on)
    batches = _batched(_take_good(documents, part.max_documents, result, spec.skip_bad_records))
    with refuse_changes(part.spans):
        yield from batches if part.max_tokens is None else _limit_tokens(batches, encoder, part.max_tokens)


def _arrange(
    batch: list[Document], dropped: NDArray[np.int64], choice: SplitChoice, spec: BuildSpec
) -> tuple[list[Document], list[bytes], NDArray[np.str_]]:
    """Return the documents that are not dropped, with their hashes and splits, training documents first."""
    hashes = [hash_text(document.key) for document in batch]
    splits = _choose_splits(hashes, choice, spec.validation_share)
    splits[dropped] = ""
    order = np.concatenate([np.flatnonzero(splits == name) for name in SPLITS]).tolist()
    return [batch[i] for i in order], [hashes[i] for i in order], splits[order]


def _leave_out(
    documents: list[Document], encoded: EncodedBatch, splits: NDArray[np.str_], spec: BuildSpec, result: PartResult
) -> None:
    """Leave out documents without loss, with a refused special token, or of a wrong length, and count them."""
    reasons = {
        i: "no token carries loss" for i, runs in enumerate(encoded.loss_runs) if runs is not None and not len(runs)
    }
    if spec.special_tokens_in_text == "refuse":
        reasons |= {
            i: f"it contains the special token {token!r}, which data.special_tokens_in_text: refuse does not allow"
            for i, token in encoded.spelled.items()
        }
    for index, reason in sorted(reasons.items()):
        refuse(_place(documents[index], reason), result.bad_records, spec.skip_bad_records)
        splits[index] = ""
    lengths = np.diff(encoded.offsets)
    is_short = (splits != "") & (lengths < (spec.min_document_tokens or 0))
    is_long = (splits != "") & (lengths > (spec.max_document_tokens or np.inf))
    result.too_short += int(is_short.sum())
    result.too_long += int(is_long.sum())
    splits[is_short | is_long] = ""


def _place(document: Document, reason: str) -> BadRecord:
    return BadRecord(document.origin.path, document.origin.unit, document.origin.number, reason)


def _count_bytes(document: Document) -> int:
    return len(document.text.encode() if document.is_chat else document.key)


def _encode_rejected(rejected: list[Document], chosen: EncodedDocuments, encoder: Encoder) -> EncodedDocuments:
    """Encode the rejected answers of a batch of preference pairs, with the hashes and splits of the chosen ones."""
    source, hashes = chosen.table.column("source"), chosen.table.column("hash")
    table = build_record_batch(encoder.encode_documents(rejected), source[0].as_py(), hashes.to_pylist())
    sizes = np.array([_count_bytes(document) for document in rejected], np.int64)
    return EncodedDocuments(table, np.char.add(chosen.splits, REJECTED), sizes)


def find_encoder(spec: BuildSpec) -> Encoder:
    """Return the encoder of a build, which a process loads once."""
    in_text = spec.special_tokens_in_text
    return _load_encoder(spec.tokenizer_dir, spec.tokenizer_fingerprint, spec.encoder, in_text)


@lru_cache(maxsize=1)
def _load_encoder(directory: Path, fingerprint: str, name: EncoderName, in_text: SpecialInText) -> Encoder:
    """Load an encoder once per process; a new `fingerprint` loads it again when the files have changed."""
    return Encoder(load_tokenizer(directory), name, in_text)


def _take_good(
    documents: Iterable[Document | BadRecord | LeftOut], limit: int | None, result: PartResult, skip: bool
) -> Iterator[Document]:
    count = 0
    for document in documents:
        if isinstance(document, BadRecord):
            refuse(document, result.bad_records, skip)
            continue
        if isinstance(document, LeftOut):
            result.labelled_false += 1
            continue
        yield document
        count += 1
        if count == limit:
            return


def refuse(record: BadRecord, bad: list[BadRecord], skip: bool) -> None:
    """Add a bad record to the list if `skip`, else raise UserError."""
    if not skip:
        raise UserError(f"{record} (data.on_bad_record: skip leaves such records out and lists them)")
    bad.append(record)


def _limit_tokens(batches: Iterable[list[Document]], encoder: Encoder, max_tokens: int) -> Iterator[list[Document]]:
    """Stop before the document that would exceed `max_tokens`; encodes the documents once more to count tokens."""
    for batch in batches:
        offsets = encoder.encode_documents(batch).offsets
        count = int(np.searchsorted(offsets, max_tokens, side="right")) - 1
        yield batch[:count]
        max_tokens -= int(offsets[count])
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


def _choose_splits(hashes: list[bytes], choice: SplitChoice, validation_share: float) -> np.ndarray:
    """Choose the split of each document by its content alone, so that it does not change when data is added."""
    if choice != "auto":
        return np.full(len(hashes), choice)
    words = np.frombuffer(b"".join(hashes), "<u8")[::2]
    return np.where(words < validation_share * 2.0**64, "validation", "train")


def build_record_batch(encoded: EncodedBatch, source: int, hashes: list[bytes]) -> pa.RecordBatch:
    """Make an Arrow batch of the store's schema. Raises UserError for more than 2^31 - 1 tokens."""
    if encoded.offsets[-1] > np.iinfo(np.int32).max:
        raise UserError(
            f"documents of {encoded.offsets[-1]} tokens in one batch, more than 2^31 - 1: lower data.max_record_bytes"
        )
    run_lengths = [0 if runs is None else len(runs) for runs in encoded.loss_runs]
    run_offsets = np.concatenate([[0], np.cumsum(run_lengths)]).astype(np.int32)
    run_values = [runs for runs in encoded.loss_runs if runs is not None]
    flat_runs = np.concatenate(run_values) if run_values else np.empty(0, np.int32)
    missing = np.array([runs is None for runs in encoded.loss_runs], np.bool_)
    columns = [
        to_lists(encoded.ids, encoded.offsets),
        to_lists(flat_runs.astype(np.int32), run_offsets, missing),
        to_arrow(np.full(len(hashes), source, np.int32)),
        pa.Array.from_buffers(pa.binary(16), len(hashes), [None, pa.py_buffer(b"".join(hashes))]),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
