"""Completes a store: combines the results of all parts into `bad_records.jsonl` and the manifest, and logs a summary.

Tokens were counted while they were written. Of the shards, only content hashes are read, and only if equal documents
can be on both sides of the split. Bad records are copied one part at a time.
"""

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from data_prep.encode.tokenizer import LoadedTokenizer
from data_prep.errors import UserError
from data_prep.options import DataSection
from data_prep.read.files import BadRecord
from data_prep.read.fingerprint import NAMED_OPTIONS, STORE_FORMAT
from data_prep.read.parts import Part
from data_prep.render.noticed import log_noticed, sum_up
from data_prep.store.build import BuildSpec
from data_prep.store.document_table import DocumentTable
from data_prep.store.results import PartResult, TokenCounts, load_result
from data_prep.store.statistics import measure_cross_entropy, measure_entropy
from data_prep.store.store import (
    MANIFEST,
    SPLITS,
    TOKENIZER,
    Manifest,
    Shard,
    SourceCounts,
    SplitCounts,
    count_left_out,
)
from data_prep.store.writing import write_atomically

logger = logging.getLogger("redline.data")

BAD_RECORDS = "bad_records.jsonl"
SHOWN_BAD_RECORDS = 3
LEFT_OUT = ("duplicates", "too_short", "too_long", "labelled_false")


def write_manifest(
    parts: Sequence[Part],
    found: dict[str, PartResult],
    token_counts: TokenCounts,
    data: DataSection,
    spec: BuildSpec,
    tokenizer: LoadedTokenizer,
) -> Manifest:
    """Check the results of all parts and write the manifest, which marks the store as complete.

    found: results by fingerprint; token_counts: sums over all parts, by split.
    Raises UserError when too many records are bad or no document is left, and WriteError.
    """
    directory = spec.directory
    results = [found[part.fingerprint] for part in parts]
    everything = [shard for result in results for shard in result.shards]
    shards = [shard for shard in everything if shard.split in SPLITS]
    left_out = _sum_left_out(results)
    write_atomically(directory / BAD_RECORDS, _list_bad_records(parts, found, directory))
    for bad in read_bad_records(directory, SHOWN_BAD_RECORDS):
        logger.warning("bad record: %s", bad)
    documents = sum(shard.documents for shard in shards)
    check_bad_share(left_out["bad_records"], documents + sum(left_out.values()), data.max_bad_share, directory)
    if not documents:
        raise UserError("data.sources: no document is left to train on")
    names = (*SPLITS, *sorted({shard.split for shard in everything} - set(SPLITS)))
    counts = {name: token_counts.get(name, np.zeros(tokenizer.vocab_size, np.int64)) for name in names}
    manifest = Manifest(
        format=STORE_FORMAT,
        fingerprint=directory.name,
        tokenizer_fingerprint=spec.tokenizer_fingerprint,
        tokenizer_path=str(tokenizer.directory),
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        encoder=spec.encoder,
        options=data.model_dump(mode="json", include=NAMED_OPTIONS | {"chat_template"}),
        splits={name: _count_split(everything, name, measure_entropy(counts[name])) for name in names},
        sources=[_count_source(results, data, spec, index) for index in range(len(data.sources))],
        unigram_entropy_nats=measure_entropy(counts["train"] + counts["validation"]),
        validation_unigram_cross_entropy_nats=measure_cross_entropy(counts["validation"], counts["train"]),
        shards=everything,
        fallbacks=sum(result.fallbacks for result in results),
        also_in_validation=_count_leaked(directory, shards, data),
        noticed=sum_up(result.noticed for result in results).describe(),
        chat_template=spec.template if any(shape.kind != "text" for shape in spec.shapes) else None,
        **left_out,
    )
    write_atomically(directory / TOKENIZER, (tokenizer.directory / TOKENIZER).read_bytes())
    write_atomically(directory / MANIFEST, manifest.to_json())
    return manifest


def _count_leaked(directory: Path, shards: list[Shard], data: DataSection) -> int:
    """Count training documents that are also in validation; impossible if every source has `split: auto`."""
    if all(source.split == "auto" for source in data.sources):
        return 0
    train, held_out = (np.unique(_read_hashes(directory, shards, name), return_counts=True) for name in SPLITS)
    return int(train[1][np.isin(train[0], held_out[0], assume_unique=True)].sum())


def _read_hashes(directory: Path, shards: list[Shard], split: str) -> NDArray[np.uint64]:
    chosen = [shard for shard in shards if shard.split == split]
    counts = np.array([shard.documents for shard in chosen], np.int64)
    return DocumentTable.open([directory / shard.name for shard in chosen], counts).hashes


def _list_bad_records(parts: Sequence[Part], found: dict[str, PartResult], directory: Path) -> Iterator[bytes]:
    for part in parts:
        if found[part.fingerprint].num_bad_records:
            result = load_result(directory, part)
            assert result is not None, f"{directory}: a result disappeared although the store is locked"
            yield from (record.to_json_line() for record in result.bad_records)


def read_bad_records(directory: Path, count: int) -> list[str]:
    """Read the first `count` bad records, one line each. Raises UserError when the list is missing or damaged."""
    path = directory / BAD_RECORDS
    try:
        with open(path, "rb") as file:
            found = [orjson.loads(line) for line in islice(file, count)]
        return [str(BadRecord(**bad)) for bad in found]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): delete the store and prepare again") from None


def check_bad_share(bad: int, records: int, limit: float, directory: Path) -> None:
    """Raises UserError when more than `limit` of all `records` that were read are bad."""
    share = bad / records if bad else 0.0
    if share > limit:
        raise UserError(
            f"{bad} of {records} records are bad ({share:.1%}, data.max_bad_share is {limit:.1%}): "
            f"see {directory / BAD_RECORDS}"
        )


def _count_split(shards: list[Shard], split: str, entropy: float | None) -> SplitCounts:
    chosen = [shard for shard in shards if shard.split == split]
    sums = (sum(getattr(shard, name) for shard in chosen) for name in ("documents", "tokens", "text_bytes"))
    return SplitCounts(*sums, unigram_entropy_nats=entropy)


def _count_source(results: list[PartResult], data: DataSection, spec: BuildSpec, index: int) -> SourceCounts:
    shards = [shard for result in results if result.source == index for shard in result.shards if shard.split in SPLITS]
    documents, tokens, size = (sum(getattr(s, name) for s in shards) for name in ("documents", "tokens", "text_bytes"))
    ratio = size / tokens if tokens else None
    left_out = _sum_left_out([result for result in results if result.source == index])
    return SourceCounts(data.sources[index].path, spec.shapes[index].kind, documents, tokens, size, ratio, **left_out)


def _sum_left_out(results: list[PartResult]) -> dict[str, int]:
    sums = {name: sum(getattr(result, name) for result in results) for name in LEFT_OUT}
    return {"bad_records": sum(result.num_bad_records for result in results), **sums}


def log_store(what: str, manifest: Manifest) -> None:
    """Log a line for the store, one for each source, and warnings."""
    tokens = sum(manifest.splits[name].tokens for name in SPLITS)
    left_out = "".join(f", {count} {name} left out" for name, count in count_left_out(manifest).items() if count)
    logger.info("%s: %d documents, %.2f M tokens%s", what, manifest.num_documents, tokens / 1e6, left_out)
    if manifest.fallbacks:
        logger.info("  %d documents were encoded by tokenizers instead of gigatoken", manifest.fallbacks)
    log_noticed(logger, manifest.noticed, " records")
    if manifest.also_in_validation:
        logger.warning(
            "  %d training documents are also in validation, because of the split of their sources: the validation "
            "loss is too low for them (data.deduplicate: exact leaves them out)",
            manifest.also_in_validation,
        )
    for source in manifest.sources:
        ratio = f", {source.bytes_per_token:.2f} bytes/token" if source.bytes_per_token else ""
        counts = f"{source.documents} documents, {source.tokens} tokens{ratio}"
        left_out = "".join(f", {count} {name}" for name, count in count_left_out(source).items() if count)
        logger.info("  %s (%s): %s%s", source.path, source.kind, counts, left_out)
