"""Trains two configurations in turn, several times each, and compares them.

    python -m training.benchmark compare --a "--config debug" --b "--config debug training.learning_rate=1e-3" \\
        --repeat 6 --max_steps 60 [--seeds] [--launcher "torchrun --nproc_per_node=2"] [--output PAGE.md]

Runs take turns (`interleave`), which cancels a drift of the machine, and are compared within rounds. Every run is
`training/train.py` in its own process and stays in `--work_dir` with its log. A first round of a few steps is not
counted: it builds token stores and fills the page cache, so that no counted run includes that time (`--no_warmup` skips
it).
"""

from __future__ import annotations

import argparse
import itertools
import logging
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from data_prep.errors import UserError
from training.benchmark.command_line import build_parser
from training.benchmark.interleave import interleave
from training.benchmark.launching import run_logged
from training.benchmark.page import format_machine, look_at_machine
from training.comparing.comparison import Comparison, compare
from training.comparing.page import format_page
from training.comparing.sides import Side, find_windows, load_side
from training.comparing.writing import write_comparison
from training.config import load_config
from training.metrics import names

logger = logging.getLogger("redline.benchmark")

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
RUN_LIMIT_SECONDS = 24 * 3600
WARMUP_STEPS = 3
Train = Callable[[Sequence[str], Path], None]


@dataclass(frozen=True)
class ComparisonSettings:
    """arguments: of train.py by side. seeds: round i trains both sides with seed i instead of the recipe's."""

    arguments: Mapping[str, tuple[str, ...]]
    repeats: int
    max_steps: int | None
    seeds: bool
    warmup: bool
    work_dir: Path


def main(argv: list[str], train: Train | None = None) -> int:
    """Train both sides in turn and print the comparison; the exit code."""
    options = _parse(argv)
    logging.basicConfig(level=logging.INFO, format="benchmark | %(message)s", stream=sys.stderr)
    try:
        machine = look_at_machine(shlex.join(["python", "-m", "training.benchmark", "compare", *argv]))
        settings = build_settings(options)
        comparison = train_in_turn(settings, train or partial(run_training, shlex.split(options.launcher)))
        print(describe_rounds(comparison))
        print(format_page(comparison))
        if options.output:
            write_comparison(comparison, options.output, format_machine(machine))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = options.work_dir
        print(f"error: stopped; what was trained is kept: python -m training.compare --a {kept}/a-1 … --b {kept}/b-1 …",
              file=sys.stderr)  # fmt: skip
        return 130
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = build_parser("compare", __doc__)
    for side in ("a", "b"):
        parser.add_argument(f"--{side}", required=True, metavar='"ARGS"', help="arguments of train.py, in quotes")
    parser.add_argument("--repeat", type=int, default=6, metavar="N", help="runs of each side (default 6)")
    parser.add_argument("--max_steps", type=int, metavar="M", help="steps of every run (default: the recipes' own)")
    parser.add_argument("--seeds", action="store_true", help="a seed for each round, the same on both sides")
    parser.add_argument("--no_warmup", action="store_true", help="no uncounted first round")
    parser.add_argument("--launcher", default=sys.executable, metavar='"CMD"', help="command that starts train.py")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/compare"), help="directory for the runs")
    parser.add_argument("--output", type=Path, metavar="PAGE.md", help="write the page, its JSON and its picture")
    return parser.parse_args(argv)


def build_settings(options: argparse.Namespace) -> ComparisonSettings:
    """Raises UserError for too few repeats, a place that holds something already, and arguments of train.py that are
    wrong."""
    if options.repeat < 2:
        raise UserError(f"--repeat {options.repeat}: name 2 or more: one run does not show the variation between runs")
    if options.work_dir.is_dir() and any(options.work_dir.iterdir()):
        raise UserError(f"--work_dir {options.work_dir}: it is not empty; name another directory, or remove it")
    arguments = {"A": tuple(shlex.split(options.a)), "B": tuple(shlex.split(options.b))}
    for given in arguments.values():
        load_config(given)
    return ComparisonSettings(
        arguments, options.repeat, options.max_steps, options.seeds, not options.no_warmup, options.work_dir
    )


def train_in_turn(settings: ComparisonSettings, train: Train) -> Comparison:
    """All runs, then the comparison of the counted ones. Raises UserError when one fails."""
    if settings.warmup:
        for side in settings.arguments:
            _train_one(replace(settings, max_steps=WARMUP_STEPS), side, f"warmup-{side.lower()}", 0, train)
    rounds = {side: itertools.count(1) for side in settings.arguments}

    def train_next(side: str) -> Path:
        number = next(rounds[side])
        return _train_one(settings, side, f"{side.lower()}-{number}", number, train)

    paths = interleave({side: partial(train_next, side) for side in settings.arguments}, settings.repeats)
    return compare([load_side(side, runs) for side, runs in paths.items()], paired=True)


def _train_one(settings: ComparisonSettings, side: str, name: str, seed: int, train: Train) -> Path:
    path = settings.work_dir / name
    arguments = [*settings.arguments[side], f"training.output_dir={path}"]
    if settings.max_steps is not None:
        arguments.append(f"training.max_steps={settings.max_steps}")
    if settings.seeds:
        arguments.append(f"training.seed={seed}")
    logger.info("%s: %s", name, shlex.join(arguments))
    train(arguments, path)
    return path


def run_training(launcher: Sequence[str], arguments: Sequence[str], path: Path) -> None:
    """`train.py` in its own process, its output in `PATH.log`. Raises UserError with its error when it fails."""
    run_logged([*launcher, str(TRAIN), *arguments], path.with_name(f"{path.name}.log"), RUN_LIMIT_SECONDS)


def describe_rounds(comparison: Comparison) -> str:
    """The ratio of step times in each round, of which the page has the interval."""
    a, b = ([_mean_step(side, number) for number in range(len(side.runs))] for side in comparison.sides)
    rounds = ", ".join(f"{y / x:.4f}" for x, y in zip(a, b, strict=True))
    return f"step time B / A by round: {rounds}\n"


def _mean_step(side: Side, number: int) -> float:
    windows = find_windows(side.runs[number], names.PERF_STEP_MS)
    if windows is None:
        raise UserError(f"{side.runs[number].path}: no step was timed past the first ones; raise --max_steps")
    return windows.mean()
