"""Rows to batches: random packed rows in one process, and starting in the middle of an epoch."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.benchmark.data.inputs import Inputs
from training.benchmark.data.row import BenchmarkRow
from training.benchmark.interleave import find_median, find_ratio, interleave

TOKENS_PER_BATCH = 65536
RESUMED_ROWS_PER_BATCH = 8
RESUMED_SEQ_LEN = 64


@dataclass(frozen=True)
class ReadingRate:
    """Tokens a second as rows, and as batches of tensors, padding included; `useful`: the share that is not padding."""

    tokens_per_second: float
    batched: float
    useful: float


def measure_reading(inputs: Inputs) -> BenchmarkRow:
    """Random packed rows of RowDataset, and batches of them through the Collator, in the process that would train."""
    settings = inputs.settings
    store = inputs.store(settings.build_mb)
    sides = {
        str(seq_len): lambda seq_len=seq_len: settings.run(read_rows, store, seq_len, settings.read_seconds).value
        for seq_len in settings.read_seq_lens
    }
    readings = interleave(sides, settings.repeats)
    speeds = {name: find_median([one.tokens_per_second / 1e6 for one in done]) for name, done in readings.items()}
    batches = {name: find_median([one.batched / 1e6 for one in done]) for name, done in readings.items()}
    seq_len = settings.read_seq_lens[0]
    speed = speeds[str(seq_len)]
    notes = [
        f"Rows of {name} tokens: {one.format(1)} M tokens/s; as tensors, {TOKENS_PER_BATCH // int(name)} rows a batch: "
        f"{batches[name].format(1)} M tokens/s, {readings[name][0].useful:.2%} of them not padding."
        for name, one in speeds.items()
    ]
    return BenchmarkRow(
        name="reading",
        what=f"random packed rows of {seq_len} tokens from the store, 1 process",
        against="-",
        reach=">= 100 M tokens/s",
        measured=f"{speed.format(1)} M tokens/s",
        reached=None if settings.quick else speed.median >= 100,
        notes=[
            "Ids and labels of `RowDataset`, in the order of training, after one epoch to warm up; as tensors: "
            "`StoreBatches` without workers, as a trainer on a CPU reads them.",
            *notes,
        ],
        values={name: [one.tokens_per_second for one in done] for name, done in readings.items()},
    )


def build_rows(store_dir: Path, seq_len: int, packing: str) -> tuple[Any, Any]:
    """The training rows of a store and their collator, as a training run builds them."""
    from data_prep.options import DataSection
    from data_prep.store.store import Store
    from training.data.collator import Collator
    from training.data.dataset import build_datasets

    data = DataSection.model_validate({"seq_len": seq_len, "packing": packing})
    rows, _ = build_datasets(Store.open(store_dir), data)
    return rows, Collator(0, seq_len, data.pad_to_multiple_of, data.packing)


def build_batches(rows: Any, collator: Any, rows_per_batch: int) -> Any:
    """The batches of one rank, prepared in this process."""
    from training.data.batching import FixedBatches
    from training.data.loader import LoaderOptions, StoreBatches
    from training.data.order import ShuffledRows

    batching = FixedBatches(ShuffledRows(len(rows), seed=0), rows_per_batch)
    return StoreBatches(rows, batching, collator, LoaderOptions())


def read_rows(store_dir: Path, seq_len: int, seconds: float) -> ReadingRate:
    """Read batches in the order of training for `seconds`, after one epoch to warm up; for a fresh process."""
    from training.data.batch import BATCH_INFO

    rows, collator = build_rows(store_dir, seq_len, "best_fit")
    batches = build_batches(rows, collator, TOKENS_PER_BATCH // seq_len)
    batches.start(0)
    while batches.epoch < 1:
        next(batches)
    useful: list[float] = []

    def read_batch() -> int:
        info = next(batches)[BATCH_INFO]
        useful.append(info.useful_tokens / info.tokens)
        return info.tokens

    chosen = batches.batching.cut(0, 0, 1)

    def read_plain() -> int:
        return sum(len(row.input_ids) for row in rows.__getitems__(next(chosen).rows))

    return ReadingRate(
        _measure_rate(read_plain, seconds), _measure_rate(read_batch, seconds), sum(useful) / len(useful)
    )


def _measure_rate(read: Callable[[], int], seconds: float) -> float:
    """Tokens a second."""
    started, tokens = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds or not tokens:
        tokens += read()
    return tokens / elapsed


def measure_resume(inputs: Inputs) -> BenchmarkRow:
    """The first batch after a start deep in an epoch of a store of tiny documents, against accelerate's skipping."""
    settings = inputs.settings
    depth = settings.skipped_rows
    store = build_tiny_store(inputs, depth + depth // 50)
    sides = {
        "redline": lambda: settings.run(start_at, store, depth).value,
        "redline at 0": lambda: settings.run(start_at, store, 0).value,
        "skip_first_batches": lambda: settings.run(skip_to, store, depth).value,
    }
    starts = interleave(sides, settings.repeats)
    seconds = {name: [one.seconds for one in done] for name, done in starts.items()}
    shown = {name: find_median([1000 * value for value in values]) for name, values in seconds.items()}
    ratio = find_ratio(seconds["skip_first_batches"], seconds["redline"])
    planning = find_median([one.planning_seconds for one in starts["redline"]])
    return BenchmarkRow(
        name="resume",
        what=f"resume at row {depth:,} of a synthetic store",
        against="`skip_first_batches`",
        reach="< 0.1 s",
        measured=f"{shown['redline'].format(1, 'ms')}; {ratio.format(0)} times faster",
        reached=None if settings.quick else shown["redline"].median < 100,
        notes=[
            f"To the first batch of {RESUMED_ROWS_PER_BATCH} rows, of {starts['redline'][0].num_rows:,}: "
            f"{shown['redline'].format(1, 'ms')} at row {depth:,}, {shown['redline at 0'].format(1, 'ms')} at row 0. "
            f"accelerate's `skip_first_batches` on a shuffled DataLoader over the same rows: "
            f"{find_median(seconds['skip_first_batches']).format(2, 's')}, run in full.",
            f"Not in it, for every start pays it: opening the store and planning its rows, {planning.format(2, 's')}.",
        ],
        values={"seconds": seconds, "ratio": ratio},
    )


@dataclass(frozen=True)
class Start:
    """Seconds to the first batch, and those that were spent before on opening the store and planning rows."""

    seconds: float
    planning_seconds: float
    num_rows: int


def build_tiny_store(inputs: Inputs, num_documents: int) -> Path:
    """A store of that many documents of a few tokens each, all for training."""
    text = inputs.settings.work_dir / "tiny.txt"
    with open(text, "w") as file:
        file.writelines(f"{number:x}\n" for number in range(num_documents))
    return inputs.settings.run(
        prepare_lines, text, inputs.tokenizer, inputs.new_directory("tiny"), inputs.settings.num_proc
    ).value


def prepare_lines(text: Path, tokenizer: Path, root: Path, num_proc: int) -> Path:
    """A store in which each line of a text file is a document; for a fresh process."""
    from data_prep.options import DataSection, TokenizerSection
    from data_prep.prepare import prepare

    source = {"path": str(text), "kind": "text", "text_unit": "line", "split": "train"}
    data = DataSection.model_validate({"sources": [source], "store_dir": str(root), "num_proc": num_proc})
    prepared = prepare(data, TokenizerSection.model_validate({"path": str(tokenizer)}))
    if prepared.store_dir is None:
        raise RuntimeError(f"no store was built in {root}")
    return prepared.store_dir


def start_at(store_dir: Path, position: int) -> Start:
    """Resume the way training does, by the position in its checkpoint; for a fresh process."""
    import training.data.loader  # noqa: F401  imports are not timed

    started = time.perf_counter()
    rows, collator = build_rows(store_dir, RESUMED_SEQ_LEN, "none")
    planned = time.perf_counter()
    batches = build_batches(rows, collator, RESUMED_ROWS_PER_BATCH)
    batches.start(position)
    next(batches)
    return Start(time.perf_counter() - planned, planned - started, len(rows))


def skip_to(store_dir: Path, position: int) -> Start:
    """Resume the way accelerate's users do, over the same rows; for a fresh process."""
    from accelerate import skip_first_batches
    from torch.utils.data import DataLoader

    started = time.perf_counter()
    rows, collator = build_rows(store_dir, RESUMED_SEQ_LEN, "none")
    planned = time.perf_counter()
    loader = DataLoader(rows, RESUMED_ROWS_PER_BATCH, shuffle=True, collate_fn=collator)
    next(iter(skip_first_batches(loader, position // RESUMED_ROWS_PER_BATCH)))
    return Start(time.perf_counter() - planned, planned - started, len(rows))
