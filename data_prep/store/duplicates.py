"""Removes duplicate documents across all sources of a store, before its parts are built.

1. The executor reads each part separately and writes one row per good document to `STORE/signatures`: a content hash of
   16 bytes (`exact`), or a MinHash signature of 512 bytes (`minhash`). Rows of an earlier, stopped build are reused.
2. All rows are compared in the order of the plan (sources as listed, files by path). A document is left out if a kept
   document before it is equal, or has at least the similarity `minhash_similarity`. So no two kept documents are found
   similar, and none of them is on both sides of the split into train and validation. To keep sources with `split:
   validation` complete, list them first.
3. Each part gets the numbers of its documents that are left out; they are part of its name.

Candidates for similar documents are found by bands of the signature (LSH), with bands that find 99 % of pairs at the
threshold. The share of equal positions in the whole signatures then decides. The result does not depend on the number
of processes.

Documents are left out in this order: bad records; limits of a source (`max_documents`, `max_tokens`), which limit what
is read, so they count duplicates; duplicates; documents of a wrong length. Weights apply to the rest.
Memory is about 40 bytes a document in this process. With `minhash` it is 24 bytes, and 350 more for each document that
has a similar one. Signatures stay on disk. The input is read twice, and conversations are rendered twice.
"""

import logging
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from data_prep.executor import choose_executor
from data_prep.hash_mixing import GOLDEN_RATIO, MULTIPLIERS
from data_prep.options import DataSection, Deduplicate
from data_prep.progress import progress
from data_prep.read.fingerprint import hash_text, name_of
from data_prep.read.parts import Part
from data_prep.render.documents import Document
from data_prep.store.build import BuildSpec, estimate_seconds, read_batches
from data_prep.store.results import PartResult
from data_prep.store.shingles import SIGNATURE_WORDS, sign_texts
from data_prep.store.writing import write_atomically

logger = logging.getLogger("redline.data")

FOLDER = "signatures"
SIGNATURE_FORMAT = 1
FOUND_SHARE = 0.99
Rows = NDArray[np.uint32]


def drop_duplicates(parts: Sequence[Part], spec: BuildSpec, data: DataSection) -> list[Part]:
    """Find the documents of each part that are left out, and set `Part.dropped`.

    Raises UserError as `build_part` does, and WriteError.
    """
    if data.deduplicate == "none":
        return list(parts)
    folder = spec.directory / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{_name(part, spec, data.deduplicate)}.bin" for part in parts]
    missing = [(part, path) for part, path in zip(parts, paths, strict=True) if not path.exists()]
    execute = choose_executor(data, estimate_seconds([part for part, _ in missing], spec))
    with progress("reading documents for duplicates", sum(part.size for part, _ in missing), "B") as advance:
        for index, _ in execute(partial(_sign_part, spec=spec, method=data.deduplicate), missing):
            advance(missing[index][0].size)
    width = 4 if data.deduplicate == "exact" else SIGNATURE_WORDS
    table = SignatureTable([_map(path, width) for path in paths])
    with progress("looking for duplicates"):
        found = find_equal(table) if data.deduplicate == "exact" else find_similar(table, data.minhash_similarity)
    logger.info("duplicates (%s): %d of %d documents are left out", data.deduplicate, found.sum(), len(table))
    return [replace(part, dropped=tuple(np.flatnonzero(mine).tolist())) for part, mine in table.by_part(parts, found)]


def remove_signatures(spec: BuildSpec) -> None:
    """Remove the signatures, once the store is complete."""
    shutil.rmtree(spec.directory / FOLDER, ignore_errors=True)


def _name(part: Part, spec: BuildSpec, method: Deduplicate) -> str:
    """Hash everything on which a part's signatures depend: content, limits, and with a token limit the tokenizer."""
    tokenizer = None if part.max_tokens is None else spec.tokenizer_fingerprint
    shape = orjson.dumps(spec.shapes[part.source]).decode()
    limits = [part.max_documents, part.max_tokens, tokenizer]
    return name_of([SIGNATURE_FORMAT, method, part.content, part.size, shape, limits, spec.template, spec.train_on])


def _sign_part(task: tuple[Part, Path], spec: BuildSpec, method: Deduplicate) -> None:
    part, path = task
    batches = read_batches(part, spec, PartResult(part.index, part.source))
    write_atomically(path, (_sign(batch, method).tobytes() for batch in batches))


def _sign(batch: Sequence[Document], method: Deduplicate) -> NDArray[Any]:
    if method == "exact":
        return np.frombuffer(b"".join(hash_text(_exact_content(document)) for document in batch), np.uint32)
    return sign_texts([_compared_text(document) for document in batch])


def _exact_content(document: Document) -> bytes:
    return document.key if document.rejected is None else document.key + b"\0" + document.rejected.text.encode()


def _compared_text(document: Document) -> bytes:
    """Return the text of a document that is compared.

    Of a conversation, this is contents and calls. Template, system prompt and tools, which many share, are left out.
    """
    if not document.is_chat:
        return document.key
    messages, _ = orjson.loads(document.key)
    turns = [message for message in messages if message["role"] != "system"]
    lines = [
        text for m in turns for text in (m["content"], *(str(call["function"]) for call in m.get("tool_calls", ())))
    ]
    return "\n".join(lines).encode() + (b"" if document.rejected is None else document.rejected.text.encode())


def _map(path: Path, width: int) -> Rows:
    if not path.stat().st_size:
        return np.empty((0, width), np.uint32)
    return np.memmap(path, np.uint32, "r").reshape(-1, width)


@dataclass(frozen=True)
class SignatureTable:
    """Signatures of all documents in the order of the plan; one array (documents, width) for each part."""

    by_parts: list[Rows]

    def __len__(self) -> int:
        return sum(map(len, self.by_parts))

    def hash_columns(self, begin: int, end: int) -> NDArray[np.uint64]:
        """Hash columns [begin, end) of each row, shape (documents,)."""
        return np.concatenate([_hash_rows(rows[:, begin:end]) for rows in self.by_parts])

    def take(self, documents: NDArray[np.int64]) -> Rows:
        """Return the rows of some documents, shape (len(documents), width)."""
        starts = self._starts
        owners = np.searchsorted(starts, documents, side="right") - 1
        rows = np.empty((len(documents), self.by_parts[0].shape[1]), np.uint32)
        for owner in np.unique(owners):  # one read per part, because each read of a mapped file costs microseconds
            mine = owners == owner
            rows[mine] = self.by_parts[owner][documents[mine] - starts[owner]]
        return rows

    def by_part(self, parts: Sequence[Part], marks: NDArray[np.bool_]) -> Iterator[tuple[Part, NDArray[np.bool_]]]:
        """Divide marks of all documents, shape (documents,), among the parts."""
        return zip(parts, np.split(marks, self._starts[1:-1]), strict=True)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum([len(rows) for rows in self.by_parts])])


def _hash_rows(rows: Rows) -> NDArray[np.uint64]:
    hashes = np.full(len(rows), GOLDEN_RATIO, np.uint64)
    for column in rows.T:
        hashes = (hashes ^ column) * MULTIPLIERS[0]
        hashes ^= hashes >> np.uint64(32)
    return hashes


def find_equal(table: SignatureTable) -> NDArray[np.bool_]:
    """Mark rows that are equal to an earlier row, shape (documents,)."""
    words = np.concatenate([np.asarray(rows) for rows in table.by_parts]).view(np.uint64)
    order = np.lexsort((words[:, 0], words[:, 1]))  # equal rows keep their order
    is_later = np.zeros(len(words), bool)
    is_later[order[1:]] = (words[order[1:]] == words[order[:-1]]).all(axis=1)
    return is_later


def find_similar(table: SignatureTable, similarity: float) -> NDArray[np.bool_]:
    """Mark rows that equal an earlier unmarked row in at least `similarity` of their positions, (documents,)."""
    marks = _find_repeated(table.hash_columns(0, SIGNATURE_WORDS))
    width = choose_band_width(similarity)
    documents, buckets = _find_buckets(table, width, ~marks)
    kept: dict[int, list[int]] = defaultdict(list)
    order = np.argsort(documents, kind="stable")
    edges = np.flatnonzero(np.diff(documents[order], prepend=-1, append=-1))
    for begin, end in zip(edges, edges[1:], strict=False):
        document, mine = int(documents[order[begin]]), buckets[order[begin:end]].tolist()
        others = sorted({other for bucket in mine for other in kept[bucket]})
        if others:
            rows = table.take(np.array([document, *others]))
            if (rows[1:] == rows[0]).mean(axis=1).max() >= similarity - 1e-9:
                marks[document] = True
                continue
        for bucket in mine:
            kept[bucket].append(document)
    return marks


def _find_repeated(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    _, first = np.unique(hashes, return_index=True)
    marks = np.ones(len(hashes), bool)
    marks[first] = False
    return marks


def choose_band_width(similarity: float) -> int:
    """Choose the largest number of positions per band that finds FOUND_SHARE of the pairs at `similarity`.

    There are 128 // width bands. A pair is found if all positions of a band are equal, with probability
    1 - (1 - similarity^width)^bands.
    """
    widths = range(SIGNATURE_WORDS, 1, -1)
    found = (w for w in widths if 1 - (1 - similarity**w) ** (SIGNATURE_WORDS // w) >= FOUND_SHARE)
    return next(found, 1)


def _find_buckets(
    table: SignatureTable, width: int, chosen: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find documents that share a bucket, that is, have equal positions in one band.

    Returns the pairs (document, bucket) as two arrays of equal length.
    """
    candidates = np.flatnonzero(chosen)
    documents: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    buckets: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    number = 0
    for begin in range(0, SIGNATURE_WORDS - width + 1, width):
        hashes = table.hash_columns(begin, begin + width)[candidates]
        order = np.argsort(hashes, kind="stable")
        is_new = np.diff(hashes[order], prepend=np.uint64(0)) != 0
        is_new[:1] = True
        members = np.cumsum(is_new) - 1
        is_shared = np.bincount(members)[members] > 1
        documents.append(candidates[order[is_shared]])
        buckets.append(members[is_shared] + number)
        number += int(is_new.sum())
    return np.concatenate(documents), np.concatenate(buckets)
