"""The last step of a build: results of all parts to `bad_records.jsonl` and the manifest, which makes the store whole.

Reads no shard: tokens were counted as they were written. Bad records go from part to file, one part at a time.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_prep.build import BuildSpec
from data_prep.errors import UserError
from data_prep.fingerprint import NAMED_OPTIONS, STORE_FORMAT
from data_prep.options import DataSection
from data_prep.parts import Part
from data_prep.results import PartResult, TokenCounts, load_result
from data_prep.statistics import measure_cross_entropy, measure_entropy
from data_prep.store import MANIFEST, SPLITS, Manifest, Shard, SourceCounts, SplitCounts
from data_prep.tokenizer import LoadedTokenizer
from data_prep.writing import write_atomically

BAD_RECORDS = "bad_records.jsonl"


def write_manifest(
    parts: Sequence[Part],
    found: dict[str, PartResult],
    token_counts: TokenCounts,
    data: DataSection,
    spec: BuildSpec,
    tokenizer: LoadedTokenizer,
) -> Manifest:
    """Check the whole and declare it complete. `found` goes by fingerprint, `token_counts` are of all parts together.

    Raises UserError when too much is bad or nothing is left, WriteError.
    """
    directory = spec.directory
    results = [found[part.fingerprint] for part in parts]
    everything = [shard for result in results for shard in result.shards]
    shards = [shard for shard in everything if shard.split in SPLITS]
    left_out = _sum_left_out(results)
    write_atomically(directory / BAD_RECORDS, _list_bad_records(parts, found, directory))
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
        **left_out,
    )
    write_atomically(directory / MANIFEST, manifest.to_json())
    return manifest


def _list_bad_records(parts: Sequence[Part], found: dict[str, PartResult], directory: Path) -> Iterator[bytes]:
    for part in parts:
        if found[part.fingerprint].num_bad_records:
            result = load_result(directory, part)
            assert result is not None, f"{directory}: a result went missing while its lock was held"
            yield from (record.to_json_line() for record in result.bad_records)


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
    sums = {name: sum(getattr(result, name) for result in results) for name in ("duplicates", "too_short", "too_long")}
    return {"bad_records": sum(result.num_bad_records for result in results), **sums}
