"""The last step of a build: results of all parts to `bad_records.jsonl` and the manifest, which makes the store whole.

Reads every shard once, to count tokens; so a shard that cannot be read, or an id outside the vocabulary, is found here.
"""

from dataclasses import asdict
from pathlib import Path

import orjson

from data_prep.build import BuildSpec, PartResult, result_path
from data_prep.errors import UserError
from data_prep.fingerprint import NAMED_OPTIONS, STORE_FORMAT
from data_prep.options import DataSection
from data_prep.statistics import count_tokens, measure_cross_entropy, measure_entropy
from data_prep.store import (
    MANIFEST,
    SPLITS,
    DocumentTable,
    Manifest,
    Shard,
    SourceCounts,
    SplitCounts,
    write_atomically,
)  # fmt: skip
from data_prep.tokenizer import LoadedTokenizer

BAD_RECORDS = "bad_records.jsonl"


def write_manifest(
    directory: Path, results: list[PartResult], data: DataSection, spec: BuildSpec, tokenizer: LoadedTokenizer
) -> Manifest:
    """Check the whole and declare it complete. Raises UserError when too much is bad or nothing is left."""
    shards = [shard for result in results for shard in result.shards]
    bad = [record for result in results for record in result.bad_records]
    write_atomically(directory / BAD_RECORDS, b"".join(orjson.dumps(asdict(record)) + b"\n" for record in bad))
    documents = sum(shard.documents for shard in shards)
    check_bad_share(len(bad), documents, data.max_bad_share, directory)
    if not documents:
        raise UserError("data.sources: no document is left to train on")
    paths = {split: [directory / shard.name for shard in shards if shard.split == split] for split in SPLITS}
    counts = {split: count_tokens(DocumentTable(paths[split]), tokenizer.vocab_size) for split in SPLITS}
    manifest = Manifest(
        format=STORE_FORMAT,
        fingerprint=directory.name,
        tokenizer_fingerprint=spec.tokenizer_fingerprint,
        tokenizer_path=str(tokenizer.directory),
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        encoder=spec.encoder,
        options=data.model_dump(mode="json", include=NAMED_OPTIONS | {"chat_template"}),
        splits={name: _count_split(shards, name, measure_entropy(counts[name])) for name in SPLITS},
        sources=[_count_source(results, data, spec, index) for index in range(len(data.sources))],
        bad_records=len(bad),
        unigram_entropy_nats=measure_entropy(counts["train"] + counts["validation"]),
        validation_unigram_cross_entropy_nats=measure_cross_entropy(counts["validation"], counts["train"]),
        shards=shards,
    )
    write_atomically(directory / MANIFEST, manifest.to_json())
    for result in results:
        result_path(directory, result.part).unlink()
    return manifest


def check_bad_share(bad: int, documents: int, limit: float, directory: Path) -> None:
    """Raises UserError when more than `limit` of the records are bad."""
    share = bad / (bad + documents) if bad else 0.0
    if share > limit:
        raise UserError(
            f"{bad} of {bad + documents} records are bad ({share:.1%}, data.max_bad_share is {limit:.1%}): "
            f"see {directory / BAD_RECORDS}"
        )


def _count_split(shards: list[Shard], split: str, entropy: float | None) -> SplitCounts:
    chosen = [shard for shard in shards if shard.split == split]
    sums = (sum(getattr(shard, name) for shard in chosen) for name in ("documents", "tokens", "text_bytes"))
    return SplitCounts(*sums, unigram_entropy_nats=entropy)


def _count_source(results: list[PartResult], data: DataSection, spec: BuildSpec, index: int) -> SourceCounts:
    shards = [shard for result in results if result.source == index for shard in result.shards]
    documents, tokens, size = (sum(getattr(s, name) for s in shards) for name in ("documents", "tokens", "text_bytes"))
    ratio = size / tokens if tokens else None
    return SourceCounts(data.sources[index].path, spec.shapes[index].kind, documents, tokens, size, ratio)
