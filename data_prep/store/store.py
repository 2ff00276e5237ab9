"""The token store: documents as Arrow IPC streams under one manifest.

    STORE/manifest.json                     written last; without it there is no store
    STORE/{train,validation}-PART.arrow     ids: list<int32>, loss_runs: list<int32> | null, source: int32,
                                            hash: 16 bytes; PART is the fingerprint of what the shard was made of
    STORE/tokenizer.json                    what decodes the ids
    STORE/parts/PART.json                   what became of a part (`results`), from which other stores take it over

The documents are those of the manifest's shards, in its order; a shard may come more than once.

Of preference pairs the chosen answers are the documents of train and validation; the rejected ones lie in
`train_rejected-PART.arrow`, in the same order and under the same hashes, and are no part of what is counted or
trained on (`Store.split("train_rejected")`).
`loss_runs` flattens [start, end) ranges of positions that carry loss; null means all. `datasets.Dataset.from_file`
reads a shard. What bears a final name is whole (`writing`).
Opening costs a stat per shard (about 5 µs with its entry in the manifest, so 60 ms for 100 GB of text), and holds its
size against the manifest; its bytes are compared with their hash by `data_prep.inspect --verify`. What is read of it
`document_table` describes what may be read later.
"""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa

from data_prep.errors import UserError
from data_prep.store.document_table import DocumentTable

Split = Literal["train", "validation", "train_rejected", "validation_rejected"]
SPLITS: tuple[Split, Split] = ("train", "validation")
REJECTED = "_rejected"
REJECTED_SPLITS: tuple[Split, Split] = ("train_rejected", "validation_rejected")
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
SCHEMA = pa.schema(
    [
        pa.field("ids", pa.list_(pa.int32()), nullable=False),
        pa.field("loss_runs", pa.list_(pa.int32())),
        pa.field("source", pa.int32(), nullable=False),
        pa.field("hash", pa.binary(16), nullable=False),
    ]
)


@dataclass(slots=True)
class Shard:
    """One file of a split; `text_bytes` is the UTF-8 size of what was encoded, `hash` the xxh3-128 of the file.

    Not frozen: a large store has ten thousand, and opening it waits for them.
    """

    name: str
    split: Split
    documents: int
    tokens: int
    text_bytes: int
    file_bytes: int
    hash: str


@dataclass(frozen=True)
class SplitCounts:
    """Documents and tokens of one split."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    unigram_entropy_nats: float | None = None


@dataclass(frozen=True)
class SourceCounts:
    """What became of one source's records."""

    path: str
    kind: str
    documents: int
    tokens: int
    text_bytes: int
    bytes_per_token: float | None
    bad_records: int = 0
    duplicates: int = 0
    too_short: int = 0
    too_long: int = 0
    labelled_false: int = 0


@dataclass(frozen=True)
class Manifest:
    """What a store holds and what it was made with. Entropies are in nats per token.

    `unigram_entropy_nats` is the entropy of the whole corpus' token frequencies (both splits);
    `validation_unigram_cross_entropy_nats` scores the validation tokens under the add-one smoothed frequencies of the
    training tokens: the loss of the best model that ignores context. Null where a split is empty.
    Records in = documents + bad_records + duplicates + too_short + too_long + labelled_false (answers that their own
    label calls bad) + what is beyond a source's limits.
    `fallbacks` documents could not be encoded by gigatoken and were by tokenizers; the content of `also_in_validation`
    of those of train is in validation, too. `noticed`: by kind what a chat template left out of how many records, and
    special tokens that texts spell, each with the place and text of the first. `chat_template` is the Jinja source that
    chats were rendered with, null where no source holds any.
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
    duplicates: int = 0
    too_short: int = 0
    too_long: int = 0
    labelled_false: int = 0
    fallbacks: int = 0
    also_in_validation: int = 0
    noticed: dict[str, tuple[int, str]] = field(default_factory=dict)
    chat_template: str | None = None

    @property
    def num_documents(self) -> int:
        """Of all splits that train or validate."""
        return sum(counts.documents for name, counts in self.splits.items() if name in SPLITS)

    @property
    def num_records(self) -> int:
        """All that were read: stored or left out."""
        return self.num_documents + sum(count_left_out(self).values())

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Manifest":
        """From the file's content. Raises TypeError or KeyError for another form."""
        nested = {
            "splits": {name: SplitCounts(**counts) for name, counts in value["splits"].items()},
            "sources": [SourceCounts(**counts) for counts in value["sources"]],
            "shards": [Shard(**shard) for shard in value["shards"]],
            "noticed": {kind: (count, example) for kind, (count, example) in value["noticed"].items()},
        }
        return cls(**{**value, **nested})

    def to_json(self) -> bytes:
        """The file's content."""
        return orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2)


def count_left_out(counts: Manifest | SourceCounts) -> dict[str, int]:
    """Records that are not in the store, by the reason."""
    return {
        "bad records": counts.bad_records,
        "duplicates": counts.duplicates,
        "too short": counts.too_short,
        "too long": counts.too_long,
        "labelled false": counts.labelled_false,
    }


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
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{path} is no complete token store (no {MANIFEST}): run data_prep.prepare") from None
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path / MANIFEST} cannot be read ({error}): delete {path} and prepare again") from None
        for shard in manifest.shards:
            file = f"{path}/{shard.name}"  # a Path costs more than the stat
            if _find_size(file) != shard.file_bytes:
                raise UserError(f"{file} is missing or not {shard.file_bytes} bytes: delete {path} and prepare again")
        return cls(path, manifest)

    def split(self, name: Split) -> DocumentTable:
        """The documents of a split."""
        if name not in self._tables:
            shards = [shard for shard in self.manifest.shards if shard.split == name]
            counts = np.array([shard.documents for shard in shards], np.int64)
            self._tables[name] = DocumentTable.open([self.path / shard.name for shard in shards], counts)
        return self._tables[name]

    def __reduce__(self) -> tuple[Any, ...]:
        return Store.open, (self.path,)


def _find_size(file: str) -> int | None:
    try:
        return os.stat(file).st_size
    except FileNotFoundError:
        return None
