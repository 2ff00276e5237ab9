"""Assembles a store: reuses finished parts, builds the others, and completes the store.

Memory grows only by a few hundred bytes per part. Of a finished part only counts are kept in memory; its bad records
stay on disk until they are copied to `bad_records.jsonl`.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from data_prep.encode.tokenizer import LoadedTokenizer
from data_prep.executor import choose_executor
from data_prep.options import DataSection
from data_prep.progress import progress
from data_prep.read import chunks
from data_prep.read.parts import Part
from data_prep.store.build import BuildSpec, build_part, estimate_seconds, name_parts
from data_prep.store.results import FOLDER, PartResult, TokenCounts, find_results, save_result
from data_prep.store.store import Manifest
from data_prep.store.summary import write_manifest
from data_prep.store.writing import WriteError, explain_write_errors, remove_temporaries

SAVERS = 4  # threads: flushing waits for the disk, not for a processor


def assemble_store(parts: Sequence[Part], spec: BuildSpec, data: DataSection, tokenizer: LoadedTokenizer) -> Manifest:
    """Build the missing parts of the store in `spec.directory`, whose lock the caller must hold.

    Parts with the same content are built once, and the manifest lists them as often as they occur. Raises UserError as
    `build_part` does, and WriteError.
    """
    parts = name_parts(parts, spec)
    with explain_write_errors(spec.directory):
        (spec.directory / FOLDER).mkdir(parents=True, exist_ok=True)
        remove_temporaries(spec.directory)
    times = Counter(part.fingerprint for part in parts)
    counts: TokenCounts = {}
    with progress("looking for finished parts"):
        results = find_results(spec.directory, parts, tokenizer.vocab_size, spec.skip_bad_records)
    for name, result in results.items():
        _take_counts(result, times[name], counts)
    missing = _order({part.fingerprint: part for part in parts if part.fingerprint not in results}.values())
    execute = choose_executor(data, estimate_seconds(missing, spec))
    try:
        with progress("building the store", sum(part.size for part in missing), "B") as advance:
            for part, result in _save_all(missing, execute(partial(build_part, spec=spec), missing), spec.directory):
                _take_counts(result, times[part.fingerprint], counts)
                results[part.fingerprint] = result
                advance(part.size)
        with progress("completing the store"):
            return write_manifest(parts, results, counts, data, spec, tokenizer)
    except WriteError as error:
        raise WriteError(f"{error}; {_estimate_need(missing, results)}") from None


def _save_all(
    parts: Sequence[Part], results: Iterable[tuple[int, PartResult]], directory: Path
) -> Iterator[tuple[Part, PartResult]]:
    """Save results in threads while other parts are built; yield each part with its result once it is on disk."""
    saving: deque[tuple[Part, PartResult, Future[None]]] = deque()
    with ThreadPoolExecutor(SAVERS) as pool:
        for index, result in results:
            part = parts[index]
            saving.append((part, result, pool.submit(save_result, directory, part, result)))
            if len(saving) > 2 * SAVERS:
                yield _take_saved(saving)
        while saving:
            yield _take_saved(saving)


def _take_saved(saving: deque[tuple[Part, PartResult, Future[None]]]) -> tuple[Part, PartResult]:
    part, result, saved = saving.popleft()
    saved.result()
    return part, result


def _order(parts: Iterable[Part]) -> list[Part]:
    """Move very large parts (files that cannot be cut) to the front, so that none of them starts last."""
    return sorted(parts, key=lambda part: -(part.size // (4 * chunks.MAX_BYTES)))


def _take_counts(result: PartResult, times: int, counts: TokenCounts) -> None:
    """Add the token counts of a part to the sums `times` times, then free its large fields."""
    for split, found in result.token_counts.items():
        counts[split] = counts.get(split, np.zeros(len(found), np.int64)) + times * found
    result.forget_lists()


def _estimate_need(missing: Sequence[Part], results: dict[str, PartResult]) -> str:
    """Estimate the space that missing parts need from that of finished parts; else a byte per byte of input."""
    done = [part for part in missing if part.fingerprint in results]
    size = sum(part.size for part in done)
    taken = sum(shard.file_bytes for part in done for shard in results[part.fingerprint].shards)
    left = sum(part.size for part in missing) - size
    return f"about {left * (taken / size if size else 1.0) / 1e9:.2f} GB more are needed"
