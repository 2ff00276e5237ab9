"""How often `training.compare` sees a difference where there is none, and which differences it finds.

    python -m training.benchmark calibrate [--pairs N] [--output docs/results/compare.md] [--runs DIR]

Simulation: step times of one configuration on a machine of several kinds, as one path over time that is cut into runs
which take turns as in `interleave`, compared with each other as `compare` holds speed. **False alarms** are the pairs
that came out as different. **Found** is the smallest slowdown seen in 80 % of the pairs: slowing B by a factor scales
its interval, so a pair shows every slowdown above 1 / low - 1, and the figure is the 80 % quantile of those.

Losses are simulated likewise: runs that differ by their seed alone, at the level that a loss has on a page.

`--runs DIR`: every pair of the runs in DIR, all of one configuration, through the whole comparison: a pair counts as a
false alarm when any row of it does. `benchmark compare --a X --b X --seeds --work_dir DIR` makes such runs.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.atomic_files import write_atomically
from data_prep.errors import UserError
from training.benchmark.command_line import build_parser
from training.benchmark.interleave import draw_orders
from training.comparing.comparison import LOSS_ROWS, QUESTIONS, Pair, compare
from training.comparing.intervals import ALPHA, PARTS, POWER, Windows, find_interval
from training.comparing.losses import Curve, judge_curves
from training.comparing.sides import PHASE_KEYS, SPEED, WARMUP_SHARE, Side, find_metrics, find_windows, load_side
from training.environment import describe_machine
from training.metrics import names

WINDOWS = (30, 100, 1000)
REPEATS = (1, 3, 6)
LOSS_NOISE, LOSS_WANDERS = 0.05, 0.01  # nats per token
NOISE = 0.05  # standard deviation of a window's time, relative
Machine = Callable[[np.random.Generator, int, int, int], np.ndarray]


def _independent(rng: np.random.Generator, pairs: int, runs: int, windows: int) -> np.ndarray:
    return rng.normal(0, NOISE, (pairs, runs * windows))


def _build_autoregressive(length: Callable[[int], float]) -> Machine:
    """AR(1) with a correlation length in windows, given the windows of a run."""

    def draw(rng: np.random.Generator, pairs: int, runs: int, windows: int) -> np.ndarray:
        carry = float(np.exp(-1 / length(windows)))
        shocks = rng.normal(0, NOISE * (1 - carry**2) ** 0.5, (pairs, runs * windows))
        shocks[:, 0] = rng.normal(0, NOISE, pairs)
        for at in range(1, shocks.shape[1]):
            shocks[:, at] += carry * shocks[:, at - 1]
        return shocks

    return draw


def _flicker(rng: np.random.Generator, pairs: int, runs: int, windows: int) -> np.ndarray:
    """1/f noise: a spectrum that falls with frequency, from a path twice as long."""
    count = 2 * runs * windows
    amplitudes = np.zeros(count // 2 + 1)
    amplitudes[1:] = np.arange(1, count // 2 + 1) ** -0.5
    spectrum = amplitudes * (rng.normal(size=(pairs, len(amplitudes), 2)) @ np.array([1, 1j]))
    path = np.fft.irfft(spectrum, count)[:, : runs * windows]
    return path / path.std() * NOISE


def _random_walk(rng: np.random.Generator, pairs: int, runs: int, windows: int) -> np.ndarray:
    """Drifts by NOISE, as a standard deviation, within the time of one run, over independent noise."""
    steps = rng.normal(0, NOISE / windows**0.5, (pairs, runs * windows))
    return np.cumsum(steps, axis=1) + _independent(rng, pairs, runs, windows)


def _waves(rng: np.random.Generator, pairs: int, runs: int, windows: int) -> np.ndarray:
    """A sine of half to eight runs' length, over independent noise."""
    length = 2 ** rng.uniform(-1, 3, (pairs, 1)) * windows
    phase = rng.uniform(0, 2 * np.pi, (pairs, 1))
    wave = np.sin(2 * np.pi * np.arange(runs * windows) / length + phase)
    return NOISE * wave + _independent(rng, pairs, runs, windows)


def _hiccups(rng: np.random.Generator, pairs: int, runs: int, windows: int) -> np.ndarray:
    """3 windows in 100 take longer, by a Pareto distribution without a variance."""
    shape = (pairs, runs * windows)
    return np.log1p((rng.random(shape) < 0.03) * 0.5 * rng.pareto(1.5, shape)) + rng.normal(0, NOISE, shape)


def _warm_up(rng: np.random.Generator, pairs: int, runs: int, windows: int) -> np.ndarray:
    """The first windows of each run take three times as long, falling by e in 5 windows."""
    slow = np.tile(np.log1p(2 * np.exp(-np.arange(windows) / 5)), runs)
    return slow + _independent(rng, pairs, runs, windows)


def _run_to_run(rng: np.random.Generator, pairs: int, runs: int, windows: int) -> np.ndarray:
    """Each run has a level of its own (1 %): what one run cannot show."""
    return np.repeat(rng.normal(0, 0.01, (pairs, runs)), windows, axis=1) + _independent(rng, pairs, runs, windows)


MACHINES: dict[str, Machine] = {
    "independent": _independent,
    "AR(1), 10 windows": _build_autoregressive(lambda windows: 10),
    "AR(1), quarter of a run": _build_autoregressive(lambda windows: windows / 4),
    "flicker noise": _flicker,
    "random walk": _random_walk,
    "slow waves": _waves,
    "hiccups, heavy tails": _hiccups,
    "warm-up": _warm_up,
    "1 % from run to run": _run_to_run,
}


def _batches(rng: np.random.Generator, runs: int, records: int) -> np.ndarray:
    return rng.normal(0, LOSS_NOISE, (runs, records))


def _wandering(rng: np.random.Generator, runs: int, records: int) -> np.ndarray:
    """Another start leads another way: what differs comes and goes within a quarter of the run."""
    way = _build_autoregressive(lambda windows: windows / 4)(rng, runs, 1, records)
    return way / NOISE * LOSS_WANDERS + _batches(rng, runs, records)


def _levels(rng: np.random.Generator, runs: int, records: int) -> np.ndarray:
    """Each seed ends somewhere else: what one run cannot show."""
    return rng.normal(0, LOSS_WANDERS, (runs, 1)) + _batches(rng, runs, records)


SEEDS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "loss: noise of batches": _batches,
    "loss: wandering": _wandering,
    "loss: a level of each seed": _levels,
}


@dataclass(frozen=True)
class Cell:
    """Of one machine, length and number of runs. shown: median of what the comparison itself says it could detect."""

    false_alarms: float
    found: float
    shown: float


def simulate(machine: Machine, windows: int, repeats: int, pairs: int, seed: int = 0) -> Cell:
    """`pairs` comparisons of a configuration with itself, at the level of the speed question."""
    rng = np.random.default_rng(seed)
    times = np.exp(machine(rng, pairs, 2 * repeats, windows)).reshape(pairs, 2 * repeats, windows)
    times = times[:, :, max(2, round(WARMUP_SHARE * windows)) :]
    weights = np.ones(times.shape[2])
    orders = list(draw_orders([0, 1], repeats))
    first, second = ([2 * i + order.index(side) for i, order in enumerate(orders)] for side in (0, 1))
    alarms, thresholds, shown = 0, [], []
    for runs in times:
        a, b = ([Windows(runs[at], weights) for at in order] for order in (first, second))
        found = find_interval(a, b, alpha=ALPHA / QUESTIONS, paired=repeats > 1)
        alarms += bool(found.differs)
        thresholds.append(1 / found.low - 1 if found.low else np.inf)
        shown.append(found.detectable if found.detectable is not None else np.inf)
    return Cell(alarms / pairs, float(np.quantile(thresholds, POWER)), float(np.median(shown)))


def simulate_losses(kind: str, records: int, repeats: int, pairs: int, seed: int = 0) -> Cell:
    """The same of `train/loss` at equal tokens, in nats per token. found: the smallest change seen in 80 % of the
    pairs: a shift of B shifts its interval."""
    rng = np.random.default_rng(seed)
    x = np.linspace(0.0, 1.0, records)
    alarms, thresholds, shown = 0, [], []
    for _ in range(pairs):
        losses = 2 + 6 * np.exp(-x / 0.2) + SEEDS[kind](rng, 2 * repeats, records)
        a, b = ([Curve(x, y) for y in half] for half in (losses[:repeats], losses[repeats:]))
        found = judge_curves(a, b, alpha=ALPHA / QUESTIONS / LOSS_ROWS)
        alarms += bool(found.differs)
        thresholds.append(-found.low if found.low is not None else np.inf)
        shown.append(found.detectable if found.detectable is not None else np.inf)
    return Cell(alarms / pairs, float(np.quantile(thresholds, POWER)), float(np.median(shown)))


def count_false_alarms(side: Side) -> tuple[int, list[str]]:
    """All pairs of the runs of one configuration: their number, and a line for each that shows any difference."""
    alarms, number = [], 0
    for one, other in itertools.combinations(side.runs, 2):
        number += 1
        pair = compare([Side("A", (one,)), Side("B", (other,))]).pairs[0]
        if keys := find_differing(pair):
            alarms.append(f"{one.path.name} and {other.path.name}: {', '.join(keys)}")
    return number, alarms


def find_differing(pair: Pair) -> list[str]:
    """Keys of all rows whose interval leaves out "no difference"."""
    losses = [f"{one.key} at {one.axis}" for one in pair.losses if one.interval and one.interval.differs]
    return [row.key for row in pair.rows if row.interval.differs] + losses


def main(argv: list[str]) -> int:
    options = _parse(argv)
    try:
        page = format_runs(options.runs) if options.runs else format_table(options.pairs, argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(page)
    if options.output:
        write_atomically(options.output, page.encode())
    return 0


def _format_spreads(side: Side, key: str) -> str:
    """Of `key`, relative: of the runs' means, and of the means of each run's quarters."""
    windows = [found for run in side.runs if (found := find_windows(run, key)) and len(found.values) >= PARTS]
    means = np.array([run.mean() for run in windows])
    if len(means) < 2 or not means.all():
        return "- | -"
    parts = ([part.mean() for part in np.array_split(run.values, PARTS)] for run in windows)
    quarters = [np.std(part, ddof=1) / np.mean(part) for part in parts]
    return f"{np.std(means, ddof=1) / means.mean():.1%} | {np.mean(quarters):.1%}"


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = build_parser("calibrate", __doc__)
    parser.add_argument("--pairs", type=int, default=400, metavar="N", help="simulated pairs a cell (default 400)")
    parser.add_argument("--output", type=Path, metavar="PAGE.md", help="write the table")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="runs of one configuration, instead of a simulation")
    options = parser.parse_args(argv)
    if options.pairs < 1:
        parser.error(f"--pairs {options.pairs}: name 1 or more")
    return options


def format_runs(directory: Path) -> str:
    """The page of real runs. Raises UserError for a directory without runs."""
    side = load_side("A", [directory])
    if len(side.runs) < 2:
        raise UserError(f"--runs {directory}: one run has nothing to be compared with; name a directory of several")
    number, alarms = count_false_alarms(side)
    lines = [
        "# Comparisons of real runs of one configuration", "",
        f"{len(side.runs)} runs, every two of them through the whole comparison: {len(alarms)} of {number} pairs show "
        "a difference in any row.", "", *(f"- {alarm}" for alarm in alarms), *[""] * bool(alarms),
        "| run | steps | step ms, mean | last loss |", "|---|--:|--:|--:|",
    ]  # fmt: skip
    for run in side.runs:
        times, loss = find_windows(run, names.PERF_STEP_MS), run.series(names.TRAIN_LOSS).last()
        cells = (f"{times.mean():,.1f}" if times else "-", f"{loss:.4f}" if loss is not None else "-")
        lines.append(f"| {run.path.name} | {run.metrics.last_step:,} | {' | '.join(cells)} |")
    lines += [
        "", "| standard deviation | from run to run | of a run's quarters, mean |", "|---|--:|--:|",
        *(f"| {key} | {_format_spreads(side, key)} |" for key in find_metrics([side]) if key in (*SPEED, *PHASE_KEYS)),
    ]  # fmt: skip
    facts = side.runs[0].env
    machine = f"{facts.get('cpu_count')} cores of {facts.get('cpu')}, torch {facts.get('torch')}"
    lines += ["", f"{machine}, commit {facts.get('git_commit')}, as the first run has it."]
    return "\n".join(lines) + "\n"


def format_table(pairs: int, argv: list[str]) -> str:
    """The page: a row a machine and length; false alarms / found / shown by number of runs on each side."""
    started = time.perf_counter()
    runs = [f"{repeats} run{'s' * (repeats > 1)} each" for repeats in REPEATS]
    lines = [
        "# Comparisons, calibrated", "",
        "Of one configuration against itself: false alarms; then the smallest slowdown found in 80 % of the pairs; "
        "then, in brackets, what the comparison itself says (median). Speed, at the level that it has on a page "
        f"({ALPHA / QUESTIONS:.2%}). Windows vary by {NOISE:.0%}; {pairs} pairs a cell, rounds interleaved.", "",
        f"| machine | windows | {' | '.join(runs)} |", "|---|---|" + "---|" * len(runs),
    ]  # fmt: skip
    for name, machine in MACHINES.items():
        for windows in WINDOWS:
            cells = [simulate(machine, windows, repeats, pairs) for repeats in REPEATS]
            shown = [f"{c.false_alarms:.1%}; {c.found:.1%} ({c.shown:.1%})" for c in cells]
            lines.append(f"| {name} | {windows:,} | {' | '.join(shown)} |")
    lines += [
        "", "`train/loss` at equal tokens of runs that differ by their seed, in nats per token, at its level on a page "
        f"({ALPHA / QUESTIONS / LOSS_ROWS:.2%}). Records vary by {LOSS_NOISE} from batch to batch; seeds wander, or "
        f"end, {LOSS_WANDERS} apart (standard deviations).", "",
        f"| seeds | records | {' | '.join(runs)} |", "|---|---|" + "---|" * len(runs),
    ]  # fmt: skip
    for kind in SEEDS:
        for records in WINDOWS:
            cells = [simulate_losses(kind, records, repeats, pairs) for repeats in REPEATS]
            shown = [f"{c.false_alarms:.1%}; {c.found:.4f} ({c.shown:.4f})" for c in cells]
            lines.append(f"| {kind} | {records:,} | {' | '.join(shown)} |")
    facts = describe_machine(("numpy",))
    command = " ".join(["python -m training.benchmark calibrate", *argv])
    lines += [
        "", f"Command: `{command}` ({time.perf_counter() - started:.0f} s; {facts['cpu']}, numpy {facts['numpy']}, "
        f"commit {facts['git_commit']}).", "",
    ]  # fmt: skip
    return "\n".join(lines)
