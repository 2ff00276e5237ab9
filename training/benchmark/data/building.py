"""Raw text to a store: speed against `datasets`, opening what is there, peak memory, and cost against size."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from training.benchmark.data.builders import Build, build_store, evict, map_with_datasets, read_whole
from training.benchmark.data.inputs import MB, Inputs
from training.benchmark.data.row import BenchmarkRow
from training.benchmark.interleave import find_median, find_ratio, fit_line, interleave
from training.benchmark.isolation import Outcome, PeakMemory

Side = Callable[[Path, Path, Path, int], Build]
CACHE_STATES: dict[str, Callable[[Path], None]] = {"warm": read_whole, "cold": evict}
MIN_OPENINGS = 5  # they cost milliseconds


def run_side(inputs: Inputs, side: Side, text: Path, cache: str = "warm", watch: bool = False) -> Outcome[Build]:
    """One build from nothing in a fresh process, of text in the page cache or not."""
    root = inputs.new_directory(side.__name__)
    CACHE_STATES[cache](text)
    os.sync()  # what the side before has written must not be on its way to the disk while this one is timed
    outcome = inputs.settings.run(side, text, inputs.tokenizer, root, inputs.settings.num_proc, watch=watch)
    inputs.discard(root)
    return outcome


def measure_build(inputs: Inputs) -> BenchmarkRow:
    """JSONL to store against `datasets.map`, in MB of text a second."""
    settings = inputs.settings
    ours, theirs = settings.build_mb, settings.datasets_mb
    sides = {
        "redline": lambda: run_side(inputs, build_store, inputs.text(ours)).value,
        "datasets": lambda: run_side(inputs, map_with_datasets, inputs.text(theirs)).value,
        "redline cold": lambda: run_side(inputs, build_store, inputs.text(ours), cache="cold").value,
        # Whether datasets may be judged by a part of the text: half of that part must go at the same speed.
        "datasets half": lambda: run_side(inputs, map_with_datasets, inputs.text(theirs / 2)).value,
    }
    builds = interleave(sides, settings.repeats)
    same = run_side(inputs, build_store, inputs.text(theirs)).value
    share = same.text_bytes / inputs.text(theirs).stat().st_size  # of the JSONL; datasets does not count text
    sizes = {name: done[0].text_bytes / MB for name, done in builds.items() if name.startswith("redline")}
    sizes |= {"datasets": same.text_bytes / MB, "datasets half": inputs.text(theirs / 2).stat().st_size * share / MB}
    speeds = {name: [sizes[name] / build.seconds for build in done] for name, done in builds.items()}
    shown = {name: find_median(values) for name, values in speeds.items()}
    ratios = {name: find_ratio(speeds[name], speeds["datasets"]) for name in ("redline", "redline cold")}
    half = find_ratio(speeds["datasets half"], speeds["datasets"])
    cpu_costs = {name: [100 * build.cpu_seconds / sizes[name] for build in builds[name]] for name in builds}
    costs = {name: find_median(values) for name, values in cpu_costs.items()}
    cpu = find_ratio(cpu_costs["datasets"], cpu_costs["redline"])
    what = f"{settings.vocab_size} words, {settings.num_proc} cores, {sizes['redline']:.0f} MB of text"
    return BenchmarkRow(
        name="build",
        what=f"JSONL to store, {what}",
        against=f"`datasets.map` + HF fast tokenizer, `num_proc={settings.num_proc}`",
        reach=">= 30x, aim 60x (300 MB/s)",
        measured=f"{ratios['redline'].format(1)} times; {shown['redline'].format(1, 'MB/s')}",
        reached=None if settings.quick else ratios["redline"].median >= 30,
        notes=[
            f"MB are of text (UTF-8), {share:.0%} of the JSONL. With the page cache warm: "
            f"{shown['redline'].format(1, 'MB/s')} against {shown['datasets'].format(2, 'MB/s')}, "
            f"{ratios['redline'].format(1)} times. With the input read from disk: "
            f"{shown['redline cold'].format(1, 'MB/s')}, {ratios['redline cold'].format(1)} times "
            "(against `datasets` with a warm cache, which favours it).",
            f"`datasets` was given {sizes['datasets']:.0f} MB of the same text; it does half of that at "
            f"{half.format(2)} times the speed, where 1 is a cost exactly linear (`--datasets_mb` sets the size).",
            f"In processor time, which other loads on the machine touch less: {cpu.format(1)} times "
            f"({costs['redline'].format(2)} against {costs['datasets'].format(1)} CPU seconds per 100 MB).",
            f"Encoder: {same.encoder}. {_compare_work(same, builds['datasets'][0])}",
        ],
        values={
            "seconds": {name: [build.seconds for build in done] for name, done in builds.items()},
            "cpu_seconds": {name: [build.cpu_seconds for build in done] for name, done in builds.items()},
            "text_mb": sizes,
            "ratios": ratios,
        },
    )


def _compare_work(ours: Build, theirs: Build) -> str:
    if (ours.tokens, ours.documents) == (theirs.tokens, theirs.documents):
        return f"Both sides give {ours.tokens:,} tokens in {ours.documents:,} documents on the same text."
    return (
        f"NOT THE SAME WORK: {ours.tokens:,} tokens in {ours.documents:,} documents, "
        f"{theirs.tokens:,} in {theirs.documents:,} by datasets."
    )


def measure_cached(inputs: Inputs) -> BenchmarkRow:
    """Opening a store, and a whole `prepare` that finds one, against building it; smallest and largest size."""
    settings = inputs.settings
    values, worst, notes = {}, [], []
    for size in (min(settings.scaling_mb), max(settings.scaling_mb)):
        root = inputs.new_directory("cached")
        arguments = (inputs.text(size), inputs.tokenizer, root, settings.num_proc)
        built = settings.run(build_store, *arguments).value
        sides = {
            "open": lambda built=built: settings.run(open_store, built.store_dir).value,
            "prepare": lambda arguments=arguments: settings.run(prepare_cached, *arguments).value,
        }
        seconds = interleave(sides, max(settings.repeats, MIN_OPENINGS))
        inputs.discard(root)
        opened, prepared = (find_median([1000 * value for value in seconds[name]]) for name in sides)
        ratio = built.seconds * 1000 / opened.median
        values[f"{size:g} MB"] = {"build_seconds": built.seconds, **seconds}
        worst.append((ratio, opened))
        notes.append(
            f"{size:g} MB of JSONL: built in {built.seconds:.2f} s, opened in {opened.format(2, 'ms')}, "
            f"{ratio:,.0f} times as fast; a whole `prepare` that finds it: {prepared.format(2, 'ms')}."
        )
    ratio = min(ratio for ratio, _ in worst)
    slowest = max((opened for _, opened in worst), key=lambda opened: opened.median)
    return BenchmarkRow(
        name="cached",
        what="opening a cached store of any size",
        against="building it",
        reach=">= 1000x and < 50 ms",
        measured=f"{ratio:,.0f} times at least; {slowest.format(1, 'ms')} at most",
        reached=None if settings.quick else ratio >= 1000 and slowest.median < 50,
        notes=["Opened: manifest read, every shard checked and mapped, both splits ready for `ids(i)`.", *notes],
        values=values,
    )


def open_store(directory: Path) -> float:
    """Seconds until any document of a store can be read; for a fresh process."""
    from data_prep.store.store import SPLITS, Store

    started = time.perf_counter()
    store = Store.open(directory)
    for split in SPLITS:
        store.split(split)
    return time.perf_counter() - started


def prepare_cached(text: Path, tokenizer: Path, root: Path, num_proc: int) -> float:
    """Seconds of a `prepare` that finds its store; for a fresh process."""
    from data_prep.options import DataSection, TokenizerSection
    from data_prep.prepare import prepare

    data = DataSection.model_validate(
        {"sources": [{"path": str(text)}], "store_dir": str(root), "num_proc": num_proc, "on_bad_record": "skip"}
    )
    prepared = prepare(data, TokenizerSection.model_validate({"path": str(tokenizer)}))
    if not prepared.store_cached:
        raise RuntimeError(f"{root} does not hold the store of {text}")
    return prepared.seconds


def measure_memory(inputs: Inputs) -> BenchmarkRow:
    """Peak memory of the largest process of a build, and of its main process, of a small and of a large input."""
    settings = inputs.settings
    small, large = (f"{size:g} MB" for size in settings.memory_mb)
    texts = {f"{size:g} MB": inputs.sampled_text(size, with_largest=True) for size in settings.memory_mb}
    sides = {name: lambda text=text: run_side(inputs, build_store, text, watch=True) for name, text in texts.items()}
    outcomes = interleave(sides, settings.repeats)
    notes, values, most = [], {}, 0.0
    for role, find_peak in {"largest process": _find_largest, "main process": lambda outcome: outcome.main}.items():
        peaks = {name: [find_peak(outcome) for outcome in done] for name, done in outcomes.items()}
        resident = {name: [peak.resident / MB for peak in found] for name, found in peaks.items()}
        private = {name: [peak.private / MB for peak in found] for name, found in peaks.items()}
        ratio = find_ratio(resident[large], resident[small])
        most = max(most, *(find_median(found).median for found in resident.values()))
        values[role] = {"resident_mb": resident, "private_mb": private, "ratio": ratio}
        shown = "; ".join(
            f"{find_median(resident[name]).format(0, 'MB')} at {name} of JSONL, "
            f"{find_median(private[name]).format(0, 'MB')} of it private"
            for name in sides
        )
        notes.append(f"{role.capitalize()}: {shown}. {ratio.format(2)} times.")
    judged = values["largest process"]["ratio"]
    return BenchmarkRow(
        name="memory",
        what=f"peak memory of a build, {settings.num_proc} processes",
        against=f"input of {small} and of {large}",
        reach="same within 20 %, < 1.5 GB a process",
        measured=f"{judged.format(2)} times; {most:,.0f} MB in the largest process",
        reached=None if settings.quick else abs(judged.median - 1) <= 0.2 and most < 1500,
        notes=[
            "Resident memory, with mapped files, at its highest point; private is without them. Memory depends on "
            "the largest records, so both inputs begin with the largest and go on with records in random order.",
            *notes,
        ],
        values=values,
    )


def _find_largest(outcome: Outcome[Build]) -> PeakMemory:
    """Of the main process, which builds a small input alone, and of the workers."""
    return max((outcome.main, *outcome.workers), key=lambda peak: peak.resident)


def measure_scaling(inputs: Inputs) -> BenchmarkRow:
    """Seconds of a build against the size of its input, of like texts, and the line through the medians."""
    settings = inputs.settings
    sides = {
        size: lambda size=size: run_side(inputs, build_store, inputs.sampled_text(size)).value
        for size in settings.scaling_mb
    }
    builds = interleave({f"{size:g}": side for size, side in sides.items()}, settings.repeats)
    sizes = [done[0].text_bytes / MB for done in builds.values()]
    seconds = [[build.seconds for build in done] for done in builds.values()]
    medians = [find_median(values) for values in seconds]
    line = fit_line(sizes, [value.median for value in medians])
    return BenchmarkRow(
        name="scaling",
        what=f"cost of a build from {min(settings.scaling_mb):g} to {max(settings.scaling_mb):g} MB of JSONL",
        against="a straight line",
        reach="straight",
        measured=f"R² = {line.r_squared:.4f}",
        reached=None if settings.quick else line.r_squared >= 0.99,
        notes=[
            f"{line.intercept:.2f} s + {line.slope * 1000:.2f} ms per MB of text ({1 / line.slope:,.0f} MB/s once the "
            "workers run), least squares through the medians.",
            *(f"{size:,.0f} MB: {value.format(2, 's')}." for size, value in zip(sizes, medians, strict=True)),
        ],
        values={"text_mb": sizes, "seconds": seconds, "line": line},
    )
