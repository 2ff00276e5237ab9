"""The token store: documents as Arrow IPC streams under one manifest.

    STORE/manifest.json                     written last; without it there is no store
    STORE/{train,validation}-00000.arrow    ids: list<int32>, loss_runs: list<int32> | null, source: int32,
                                            hash: 16 bytes

`loss_runs` flattens [start, end) ranges of positions that carry loss; null means all. `datasets.Dataset.from_file`
reads a shard. Every file is written beside its name, flushed to disk and renamed, so what bears a final name is whole.
Reading is by memory map: ids come as views, nothing is copied or decoded. Opening costs one stat per shard; the
lengths of all documents cost 4 bytes each, on first use.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.errors import UserError

Split = Literal["train", "validation"]
SPLITS: tuple[Split, Split] = ("train", "validation")
MANIFEST = "manifest.json"
SCHEMA = pa.schema(
    [
        pa.field("ids", pa.list_(pa.int32()), nullable=False),
        pa.field("loss_runs", pa.list_(pa.int32())),
        pa.field("source", pa.int32(), nullable=False),
        pa.field("hash", pa.binary(16), nullable=False),
    ]
)


@dataclass(frozen=True)
class Shard:
    """One file of a split; `text_bytes` is the UTF-8 size of what was encoded."""

    name: str
    split: Split
    documents: int
    tokens: int
    text_bytes: int
    file_bytes: int


@dataclass(frozen=True)
class SplitCounts:
    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    unigram_entropy_nats: float | None = None


@dataclass(frozen=True)
class SourceCounts:
    path: str
    kind: str
    documents: int
    tokens: int
    text_bytes: int
    bytes_per_token: float | None


@dataclass(frozen=True)
class Manifest:
    """What a store holds and what it was made with. Entropies are in nats per token.

    `unigram_entropy_nats` is the entropy of the whole corpus' token frequencies (both splits);
    `validation_unigram_cross_entropy_nats` scores the validation tokens under the add-one smoothed frequencies of the
    training tokens: the loss of the best model that ignores context. Null where a split is empty.
    """

    format: int
    fingerprint: str
    tokenizer_fingerprint: str
    tokenizer_path: str
    vocab_size: int
    eos_id: int
    encoder: str
    options: dict[str, Any]
    splits: dict[str, SplitCounts]
    sources: list[SourceCounts]
    bad_records: int
    unigram_entropy_nats: float | None
    validation_unigram_cross_entropy_nats: float | None
    shards: list[Shard] = field(default_factory=list)

    @property
    def num_documents(self) -> int:
        return sum(counts.documents for counts in self.splits.values())

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Manifest":
        nested = {
            "splits": {name: SplitCounts(**counts) for name, counts in value["splits"].items()},
            "sources": [SourceCounts(**counts) for counts in value["sources"]],
            "shards": [Shard(**shard) for shard in value["shards"]],
        }
        return cls(**{**value, **nested})

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2)


def write_atomically(path: Path, data: bytes) -> None:
    """A file that is either whole or absent, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class ShardWriter:
    """Writes the documents of one part and split; nothing under the final name until `close`, no file when empty."""

    def __init__(self, directory: Path, split: Split, index: int):
        self._path = directory / f"{split}-{index:05d}.arrow"
        self._temporary = directory / f".{self._path.name}.{os.getpid()}.tmp"
        self._file: pa.OSFile | None = None
        self._writer: pa.RecordBatchStreamWriter | None = None
        self._split: Split = split
        self._counts = [0, 0, 0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._writer is not None and self._file is not None and kind is not None:
            self._file.close()
            self._temporary.unlink(missing_ok=True)

    def write(self, batch: pa.RecordBatch, text_bytes: int) -> None:
        if not batch.num_rows:
            return
        if self._writer is None:
            self._file = pa.OSFile(str(self._temporary), "wb")
            self._writer = pa.ipc.new_stream(self._file, SCHEMA)
        self._writer.write_batch(batch)
        tokens = len(batch.column("ids").flatten())
        self._counts = [a + b for a, b in zip(self._counts, (batch.num_rows, tokens, text_bytes), strict=True)]

    def close(self) -> Shard | None:
        if self._writer is None or self._file is None:
            return None
        self._writer.close()
        self._file.close()
        with open(self._temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(self._temporary, self._path)
        sync_directory(self._path.parent)
        documents, tokens, text_bytes = self._counts
        return Shard(self._path.name, self._split, documents, tokens, text_bytes, self._path.stat().st_size)


def _view(array: pa.Array, dtype: str) -> NDArray[Any]:
    """The values of a primitive array without nulls, as a view."""
    return np.asarray(array.to_numpy(zero_copy_only=True), dtype=dtype)


class DocumentTable:
    """The documents of one split, by number, as views of the mapped files."""

    def __init__(self, paths: list[Path]):
        self._batches = [batch for path in paths for batch in _read_batches(path)]
        self._starts = np.concatenate([[0], np.cumsum([len(batch.offsets) - 1 for batch in self._batches])])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _find(self, index: int) -> "tuple[_Batch, int]":
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        batch = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._batches[batch], index - int(self._starts[batch])

    def ids(self, index: int) -> NDArray[np.int32]:
        """Token ids of a document: a read-only view."""
        batch, row = self._find(index)
        return batch.ids[batch.offsets[row] : batch.offsets[row + 1]]

    def loss_runs(self, index: int) -> NDArray[np.int32] | None:
        """Flattened [start, end) positions that carry loss; None: all."""
        batch, row = self._find(index)
        if batch.run_offsets is None or batch.runs_missing[row]:
            return None
        return batch.runs[batch.run_offsets[row] : batch.run_offsets[row + 1]]

    def all_ids(self) -> Iterator[NDArray[np.int32]]:
        """Ids of all documents, a batch at a time."""
        for batch in self._batches:
            yield batch.ids

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each document."""
        return _concatenate([np.diff(batch.offsets).astype(np.int32) for batch in self._batches])

    @cached_property
    def sources(self) -> NDArray[np.int32]:
        """Index into `data.sources` of each document."""
        return _concatenate([batch.sources for batch in self._batches])

    @cached_property
    def hashes(self) -> NDArray[np.uint64]:
        """The first 8 bytes of each document's content hash."""
        return _concatenate([batch.hashes for batch in self._batches], np.uint64)

    @cached_property
    def has_loss_runs(self) -> NDArray[np.bool_]:
        return _concatenate([~batch.runs_missing for batch in self._batches], np.bool_)


def _concatenate(arrays: list[NDArray[Any]], dtype: Any = np.int32) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype)


@dataclass(frozen=True)
class _Batch:
    ids: NDArray[np.int32]
    offsets: NDArray[np.int32]
    runs: NDArray[np.int32]
    run_offsets: NDArray[np.int32] | None
    runs_missing: NDArray[np.bool_]
    sources: NDArray[np.int32]
    hashes: NDArray[np.uint64]


def _read_batches(path: Path) -> Iterator[_Batch]:
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
        for batch in reader:
            ids, runs, sources, hashes = batch.columns
            missing = np.asarray(runs.is_null().to_numpy(zero_copy_only=False))
            words = np.frombuffer(hashes.buffers()[1], np.uint64).reshape(-1, 2)
            yield _Batch(
                ids=_view(ids.values, "int32"),
                offsets=_view(ids.offsets, "int32"),
                runs=_view(runs.values, "int32"),
                run_offsets=None if missing.all() else _view(runs.offsets, "int32"),
                runs_missing=missing,
                sources=_view(sources, "int32"),
                hashes=words[: batch.num_rows, 0],
            )


class Store:
    """A complete store on disk. Pickles as its path, so worker processes map the files themselves."""

    def __init__(self, path: Path, manifest: Manifest):
        self.path = path
        self.manifest = manifest
        self._tables: dict[str, DocumentTable] = {}

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Open a store. Raises UserError when it is absent, incomplete or not what its manifest says."""
        path = Path(path)
        try:
            manifest = Manifest.from_json(orjson.loads((path / MANIFEST).read_bytes()))
        except FileNotFoundError:
            raise UserError(f"{path} is no complete token store (no {MANIFEST}): run data_prep.prepare") from None
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path / MANIFEST} cannot be read ({error}): delete {path} and prepare again") from None
        for shard in manifest.shards:
            file = path / shard.name
            if not file.is_file() or file.stat().st_size != shard.file_bytes:
                raise UserError(f"{file} is missing or not {shard.file_bytes} bytes: delete {path} and prepare again")
        return cls(path, manifest)

    def split(self, name: Split) -> DocumentTable:
        if name not in self._tables:
            paths = [self.path / shard.name for shard in self.manifest.shards if shard.split == name]
            self._tables[name] = DocumentTable(paths)
        return self._tables[name]

    def __reduce__(self) -> tuple[Any, ...]:
        return Store.open, (self.path,)
