"""Names a store or tokenizer by the content that it is made from, independent of paths and times.

Content is hashed with xxh3-128, which protects against accidents, not against an adversary. At 10 GB/s it costs less
than reading. `chunks` says which bytes are hashed, and `store.contents` caches the hashes.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import xxhash

from data_prep.options import DataSection, TokenizerSection
from data_prep.read.sources import Input

STORE_FORMAT = 3
TOKENIZER_FORMAT = 3
NAMED_OPTIONS = {
    "validation_share", "train_on", "on_bad_record", "on_dropped_content", "special_tokens_in_text",
    "deduplicate", "minhash_similarity", "min_document_tokens", "max_document_tokens",
}  # fmt: skip


def hash_text(data: bytes) -> bytes:
    """Hash a document to 16 bytes, which also decide its split."""
    return xxhash.xxh3_128_digest(data)


def hash_file(path: str | Path) -> str:
    """Hash the bytes of a file; 32 hex digits. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def name_of(value: Any) -> str:
    """Hash any JSON value to 20 hex digits, the same on every machine."""
    return hashlib.blake2b(orjson.dumps(value, option=orjson.OPT_SORT_KEYS), digest_size=10).hexdigest()


def describe_contents(inputs: Sequence[Input], hashes: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Describe each source by the hashes of its files and by how its records are read, for all fingerprints."""
    return [
        {
            "kind": item.section.kind,
            "text_key": item.section.text_key,
            "columns": item.section.named_columns,
            "records_key": item.section.records_key,
            "delimiter": item.section.delimiter,
            "max_documents": item.section.max_documents,
            "max_record_bytes": item.max_record_bytes,
            "files": [[file.format, found] for file, found in zip(item.files, by_file, strict=True)],
        }
        for item, by_file in zip(inputs, hashes, strict=True)
    ]


def fingerprint_trained_tokenizer(options: TokenizerSection, contents: list[dict[str, Any]]) -> str:
    """Name the tokenizer that these options train on this content."""
    kept = options.model_dump(exclude={"path"})
    return name_of({"tokenizer_format": TOKENIZER_FORMAT, "options": kept, "contents": contents})


def fingerprint_store(
    data: DataSection, contents: list[dict[str, Any]], tokenizer_fingerprint: str, template: str | None
) -> str:
    """Name a store, independent of paths, times and options for reading it (seq_len, packing, weight, seed)."""
    unused = set() if data.deduplicate == "minhash" else {"minhash_similarity"}
    options = data.model_dump(include=NAMED_OPTIONS - unused)
    limits = [[source.split, source.max_tokens] for source in data.sources]
    return name_of(
        {
            "store_format": STORE_FORMAT,
            "options": options,
            "contents": contents,
            "limits": limits,
            "tokenizer": tokenizer_fingerprint,
            "template": template,
        }
    )
