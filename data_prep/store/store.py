"""Defines the token store: documents in Arrow IPC streams (shards), listed by a manifest.

    STORE/manifest.json                     written last; a directory without it is not a store
    STORE/{train,validation}-PART.arrow     ids: list<int32>, loss_runs: list<int32> | null, source: int32,
                                            hash: 16 bytes; PART is the fingerprint of the part
    STORE/tokenizer.json                    decodes the ids
    STORE/parts/PART.json                   the result of a part (`results`), which other stores can reuse

The documents are those of the manifest's shards, in its order; a shard may be listed more than once.

Of preference pairs, the chosen answers are documents of train and validation. The rejected answers are in
`train_rejected-PART.arrow`, in the same order and with the same hashes. They are not counted and not trained on
(`Store.split("train_rejected")`).
`loss_runs` are flattened token ranges [start, end) that carry loss; null means all tokens. `datasets.Dataset.from_file`
can read a shard. A file with a final name is complete (`writing`).
Opening a store costs a stat per shard (about 5 µs with its entry in the manifest, so 60 ms for 100 GB of text) to check
its size; `data_prep.inspect --verify` also checks its hash. `document_table` reads the documents.
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
    """A file of a split; `text_bytes` is the UTF-8 size of the encoded texts, `hash` the xxh3-128 of the file.

    Not frozen, because freezing costs time, and a large store opens ten thousand of them.
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
    """Documents of one source, and its records that were left out, by reason."""

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
    """The content of a store and the settings that it was built with. Entropies are in nats per token.

    unigram_entropy_nats: entropy of the token frequencies of both splits together; null without tokens.
    validation_unigram_cross_entropy_nats: cross-entropy of the validation tokens under the add-one smoothed frequencies
        of the training tokens, which is the loss of the best model that ignores context; null if a split is empty.
    labelled_false: number of records whose label marks the answer as bad.
    fallbacks: number of documents that HF tokenizers encoded because gigatoken could not.
    also_in_validation: number of training documents whose content is also in validation.
    noticed: for each kind of content that the chat template left out, and for special tokens in texts, the number of
        records, and the place and text of the first.
    chat_template: Jinja source that rendered the chats; null if no source has chats.

    All records that were read = documents + bad_records + duplicates + too_short + too_long + labelled_false + records
    beyond the limits of their source.
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
        """Number of documents in train and validation."""
        return sum(counts.documents for name, counts in self.splits.items() if name in SPLITS)

    @property
    def num_records(self) -> int:
        """Number of records that were read, stored or left out."""
        return self.num_documents + sum(count_left_out(self).values())

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Manifest":
        """Build a manifest from the parsed file. Raises TypeError or KeyError when its keys do not fit."""
        nested = {
            "splits": {name: SplitCounts(**counts) for name, counts in value["splits"].items()},
            "sources": [SourceCounts(**counts) for counts in value["sources"]],
            "shards": [Shard(**shard) for shard in value["shards"]],
            "noticed": {kind: (count, example) for kind, (count, example) in value["noticed"].items()},
        }
        return cls(**{**value, **nested})

    def to_json(self) -> bytes:
        """Return the content of the file."""
        return orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2)


def count_left_out(counts: Manifest | SourceCounts) -> dict[str, int]:
    """Number of records that are not in the store, by reason."""
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
        """Open a store. Raises UserError when it is missing, incomplete or differs from its manifest."""
        path = Path(path)
        try:
            manifest = Manifest.from_json(orjson.loads((path / MANIFEST).read_bytes()))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{path} is not a complete token store (no {MANIFEST}): run data_prep.prepare") from None
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path / MANIFEST} cannot be read ({error}): delete {path} and prepare again") from None
        for shard in manifest.shards:
            file = f"{path}/{shard.name}"  # a Path costs more than the stat
            if _find_size(file) != shard.file_bytes:
                raise UserError(f"{file} is missing or not {shard.file_bytes} bytes: delete {path} and prepare again")
        return cls(path, manifest)

    def split(self, name: Split) -> DocumentTable:
        """Return the documents of a split."""
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
