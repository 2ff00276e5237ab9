"""Names for content: what a store or tokenizer is made from, never where it lay or when it was written.

Content is hashed with xxh3-128 (10 GB/s: reading is the cost; made against accidents, not against an adversary).
Files of 64 MiB and more are hashed once and remembered in `store_dir/content_hashes.json` under (path, inode, size,
mtime_ns, ctime_ns); ctime moves at every write and cannot be set back, so `touch` costs one more read and gives the
same name, while a changed byte is never missed.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import orjson
import xxhash

from data_prep.options import DataSection, TokenizerSection
from data_prep.sources import Input, SourceFile

STORE_FORMAT = 1
TOKENIZER_FORMAT = 1
REMEMBERED_FROM_BYTES = 64 * 2**20
NAMED_OPTIONS = {"validation_share", "train_on", "on_bad_record"}


def hash_text(data: bytes) -> bytes:
    """16 bytes that name a document; its validation split hangs on them."""
    return xxhash.xxh3_128_digest(data)


def hash_file(path: str | Path) -> str:
    state = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def name_of(value: Any) -> str:
    """20 hex digits for any JSON value; equal for equal values on every machine."""
    return hashlib.blake2b(orjson.dumps(value, option=orjson.OPT_SORT_KEYS), digest_size=10).hexdigest()


class ContentHashes:
    """Hashes of files, those of large ones remembered beside the stores."""

    def __init__(self, store_dir: Path):
        self._path = store_dir / "content_hashes.json"
        self._known: dict[str, str] | None = None

    def find(self, file: SourceFile) -> str:
        if file.size < REMEMBERED_FROM_BYTES:
            return hash_file(file.path)
        if self._known is None:
            self._known = self._load()
        stat = os.stat(file.path)
        key = f"{os.path.realpath(file.path)}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
        if key not in self._known:
            self._known[key] = hash_file(file.path)
            self._save(self._known)
        return self._known[key]

    def _load(self) -> dict[str, str]:
        try:
            return orjson.loads(self._path.read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):
            return {}

    def _save(self, known: dict[str, str]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(orjson.dumps(known, option=orjson.OPT_INDENT_2))
        os.replace(temporary, self._path)


def describe_contents(inputs: list[Input], hashes: ContentHashes) -> list[dict[str, Any]]:
    """What each source holds and how its records are read: the part of a name that every product shares."""
    return [
        {
            "kind": item.section.kind,
            "text_key": item.section.text_key,
            "max_documents": item.section.max_documents,
            "files": [[file.format, hashes.find(file)] for file in item.files],
        }
        for item in inputs
    ]


def fingerprint_trained_tokenizer(options: TokenizerSection, contents: list[dict[str, Any]]) -> str:
    kept = options.model_dump(exclude={"path"})
    return name_of({"tokenizer_format": TOKENIZER_FORMAT, "options": kept, "contents": contents})


def fingerprint_store(
    data: DataSection, contents: list[dict[str, Any]], tokenizer_fingerprint: str, template: str | None
) -> str:
    """Name of the store. Not in it: paths, times, and what only reads the store (seq_len, packing, weight, seed)."""
    options = data.model_dump(include=NAMED_OPTIONS)
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
