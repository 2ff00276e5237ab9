"""Lengths of real documents to rows, against TRL's best-fit-decreasing.

TRL packs a dataset, Redline plans over lengths, so the comparison must not charge TRL for moving tokens: its ids are of
Arrow's null type, which cost nothing to copy. (Arrow still lists the place of every token: a million pieces of 1024
tokens take TRL up to 8 GB.) `map` gets the whole dataset as one batch; with its default of 1,000 rows at a time TRL
would be quicker and open more bins. Documents over the row length are cut into pieces first, for both.
"""

import statistics
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.benchmark.data.inputs import Inputs
from training.benchmark.data.row import BenchmarkRow
from training.benchmark.interleave import find_median, find_ratio, interleave

CALLS = 5


@dataclass(frozen=True)
class Packed:
    """Result of a packing: seconds of a call and number of rows."""

    seconds: float
    num_rows: int


def measure_packing(inputs: Inputs) -> BenchmarkRow:
    """Time and number of rows for the lengths of the text's documents."""
    settings = inputs.settings
    capacity = settings.packed_seq_len
    lengths, drawn = load_lengths(inputs, capacity, settings.num_lengths)
    path = settings.work_dir / "lengths.npy"
    np.save(path, lengths)
    sides = {"redline": lambda: settings.run(pack_with_redline, path, capacity).value}
    if has_trl := find_spec("trl") is not None:
        sides["pack_dataset"] = lambda: settings.run(pack_with_trl, path, capacity, True).value
        sides["_pack_bfd"] = lambda: settings.run(pack_with_trl, path, capacity, False).value
    packed = interleave(sides, settings.repeats)
    seconds = {name: [one.seconds for one in done] for name, done in packed.items()}
    rows = {name: done[0].num_rows for name, done in packed.items()}
    speed = find_median([len(lengths) / value / 1e6 for value in seconds["redline"]])
    share = int(lengths.sum()) / (rows["redline"] * capacity)
    same = len(set(rows.values())) == 1
    notes = [
        f"{len(lengths):,} pieces of at most {capacity} tokens, {drawn}: {rows['redline']:,} rows, {share:.3%} full. "
        f"A run of ours is the median of {CALLS} calls in one process."
    ]
    if not has_trl:
        measured = f"{speed.format(1)} M sequences/s; TRL is not installed: pip install -r requirements-dev.txt"
        return _row(settings.num_lengths, measured, None, notes, {"seconds": seconds, "rows": rows})
    ratios = {name: find_ratio(seconds[name], seconds["redline"]) for name in ("pack_dataset", "_pack_bfd")}
    for name, ratio in ratios.items():
        shown = find_median(seconds[name])
        notes.append(f"`{name}`: {shown.format(2, 's')}, {rows[name]:,} rows; {ratio.format(0)} times as long as ours.")
    for other in settings.other_seq_lens:
        same &= _compare_rows(inputs, other, notes)
    reached = same and ratios["pack_dataset"].median >= 20 and speed.median >= 10 and share >= 0.999
    verdict = "same rows" if same else "NOT the same rows"
    measured = f"{verdict}; {ratios['pack_dataset'].format(0)} times; {speed.format(1)} M sequences/s; {share:.2%} full"
    values = {"seconds": seconds, "rows": rows, "ratios": ratios}
    return _row(settings.num_lengths, measured, None if settings.quick else reached, notes, values)


def _row(num_lengths: int, measured: str, reached: bool | None, notes: list[str], values: dict) -> BenchmarkRow:
    return BenchmarkRow(
        name="packing",
        what=f"packing {num_lengths:,} real lengths",
        against='TRL `pack_dataset(strategy="bfd")`',
        reach="same bins, >= 20x; >= 10 M sequences/s; >= 99.9 % full",
        measured=measured,
        reached=reached,
        notes=notes,
        values=values,
    )


def _compare_rows(inputs: Inputs, capacity: int, notes: list[str]) -> bool:
    """The number of rows at another row length, of a tenth as many pieces, one run a side."""
    lengths, _ = load_lengths(inputs, capacity, inputs.settings.num_lengths // 10)
    path = inputs.settings.work_dir / f"lengths-{capacity}.npy"
    np.save(path, lengths)
    ours = inputs.settings.run(pack_with_redline, path, capacity).value
    theirs = inputs.settings.run(pack_with_trl, path, capacity, False).value
    share = int(lengths.sum()) / (ours.num_rows * capacity)
    speed = len(lengths) / ours.seconds / 1e6
    notes.append(
        f"{len(lengths):,} pieces of at most {capacity} tokens: {ours.num_rows:,} rows, {share:.3%} full, "
        f"{speed:.1f} M sequences/s; TRL {theirs.num_rows:,} rows."
    )
    return ours.num_rows == theirs.num_rows


def load_lengths(inputs: Inputs, capacity: int, count: int) -> tuple[NDArray[np.int64], str]:
    """Lengths of `count` pieces of real documents, and how they were drawn."""
    from data_prep.store.store import SPLITS, Store
    from training.data.packing import cut_long

    store = Store.open(inputs.store(inputs.settings.build_mb))
    tables = [store.split(split).lengths for split in SPLITS]
    documents = np.concatenate(tables)
    lengths = cut_long(np.arange(len(documents)), documents, capacity, "split")[0].length
    return draw_lengths(lengths, count), (
        f"drawn with replacement (seed 0) from the {len(lengths):,} that the text's {len(documents):,} documents give"
    )


def draw_lengths(lengths: NDArray[np.integer[Any]], count: int) -> NDArray[np.int64]:
    """A sample of `count` lengths with replacement, the same at every call."""
    return np.random.default_rng(0).choice(lengths.astype(np.int64), count)


def pack_with_redline(path: Path, capacity: int) -> Packed:
    """Median of a few calls; for a fresh process."""
    from training.data.packing import pack_best_fit

    lengths = np.load(path)
    seconds, num_rows = [], 0
    for _ in range(CALLS):
        started = time.perf_counter()
        _, num_rows = pack_best_fit(lengths, capacity)
        seconds.append(time.perf_counter() - started)
    return Packed(statistics.median(seconds), num_rows)


def pack_with_trl(path: Path, capacity: int, whole: bool) -> Packed:
    """`pack_dataset`, or only the function inside that packs one batch; for a fresh process."""
    import datasets
    import pyarrow as pa
    from trl import pack_dataset  # pyright: ignore[reportMissingImports]
    from trl.data_utils import _pack_bfd  # pyright: ignore[reportMissingImports]

    datasets.disable_progress_bars()
    lengths = np.load(path)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    table = pa.table({"input_ids": pa.ListArray.from_arrays(offsets, pa.nulls(int(lengths.sum())))})
    dataset = datasets.Dataset(table)
    started = time.perf_counter()
    packed = pack_dataset(dataset, capacity, "bfd", {"batch_size": None}) if whole else _pack_bfd(table, capacity)
    return Packed(time.perf_counter() - started, len(packed))
