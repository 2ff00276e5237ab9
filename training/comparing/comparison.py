"""Sides of runs -> what differs between them, as data: each side against the first.

All intervals of one comparison hold together at least 95 times in 100: the 5 % are divided among the sides
compared with the first, then in thirds among three questions (speed, loss, everything else); within a question among
its rows (Bonferroni), except that speed counts once: its rows are one measurement in several units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data_prep.errors import UserError
from training.comparing.intervals import ALPHA, Interval, find_interval
from training.comparing.losses import LossComparison, compare_losses
from training.comparing.settings import Difference, describe_mixture, find_differences
from training.comparing.sides import (
    PHASE_KEYS,
    SPEED,
    Side,
    find_metrics,
    find_windows,
)
from training.comparing.units import BITS, NATS, explain_units
from training.reporting.run_reader import Run
from training.run_dir import keep_finite

QUESTIONS = 3
TRAIN_PROGRAMS = ("train.py", "redline-train")
OF_ONE_RUN = {"output_dir", "training.output_dir", "resume", "local_rank", "run_name", "training.run_name"}
LOSS_ROWS = len(NATS.axes) + 1  # bits per byte beside nats per token are the same losses in another unit


@dataclass(frozen=True)
class ComparedRow:
    """One metric: means over the runs of A and of B, and their ratio; equal: to the last digits, in every run."""

    key: str
    a: float
    b: float
    interval: Interval
    equal: bool


@dataclass(frozen=True)
class Pair:
    """One side against the first side. `rows`: speed, phases, memory and so on, in that order."""

    a: Side
    b: Side
    rows: tuple[ComparedRow, ...]
    losses: tuple[LossComparison, ...]
    settings: tuple[Difference, ...]

    def find(self, key: str) -> ComparedRow | None:
        """The row of a metric; None when it was not measured on both sides."""
        return next((row for row in self.rows if row.key == key), None)


@dataclass(frozen=True)
class Comparison:
    """All sides, each compared with the first."""

    sides: tuple[Side, ...]
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]
    paired: bool

    def as_json(self) -> dict[str, Any]:
        """Every number of the page; what is not known is null."""
        return {
            "sides": {side.name: [str(run.path) for run in side.runs] for side in self.sides},
            "paired": self.paired,
            "notes": list(self.notes),
            "pairs": [_pair_as_json(pair) for pair in self.pairs],
        }


def compare(sides: Sequence[Side], *, paired: bool = False, skip_steps: int | None = None) -> Comparison:
    """Each of `sides` against the first, which is the baseline. Raises ValueError for fewer than 2,
    UserError when `skip_steps` leaves nothing, or a run comes twice.

    paired: the i-th runs of all sides were made in one round.
    """
    if len(sides) < 2:
        raise ValueError("a comparison needs two sides")
    paths = [run.path.resolve() for side in sides for run in side.runs]
    twice = [path for number, path in enumerate(paths) if path in paths[:number]]
    if twice:
        raise UserError(f"{twice[0]}: named twice; a run cannot be compared with itself, or count as two")
    alpha = ALPHA / (len(sides) - 1) / QUESTIONS
    first, *others = sides
    pairs = tuple(_compare_pair(first, other, alpha, paired, skip_steps) for other in others)
    return Comparison(tuple(sides), pairs, tuple(_find_notes(sides)), paired)


def _compare_pair(a: Side, b: Side, alpha: float, paired: bool, skip_steps: int | None) -> Pair:
    keys = find_metrics((a, b))
    num_others = max(sum(key not in SPEED for key in keys), 1)
    rows = [
        _compare_metric(a, b, key, alpha if key in SPEED else alpha / num_others, paired, skip_steps) for key in keys
    ]
    losses = compare_losses(a, b, alpha=alpha / LOSS_ROWS, paired=paired)
    settings = find_differences(a.runs[0], b.runs[0])
    found = tuple(row for row in rows if row)
    if not found and skip_steps:
        raise UserError(f"--skip_steps {skip_steps}: {a.name} and {b.name} have no record after these in common")
    return Pair(a, b, found, tuple(losses), tuple(settings))


def _compare_metric(
    a: Side, b: Side, key: str, alpha: float, paired: bool, skip_steps: int | None
) -> ComparedRow | None:
    sides = [[find_windows(run, key, skip_steps) for run in side.runs] for side in (a, b)]
    known = [[windows for windows in side if windows is not None] for side in sides]
    if any(len(found) < len(side) for found, side in zip(known, sides, strict=True)):
        return None
    values = [[windows.mean() for windows in side] for side in known]
    mean_a, mean_b = (float(np.mean(side)) for side in values)
    every = np.concatenate([windows.values for side in known for windows in side])
    equal = bool(np.all(every == every[0]))
    interval = find_interval(*values, alpha=alpha, paired=paired)
    return ComparedRow(key, mean_a, mean_b, interval, equal)


def _find_notes(sides: Sequence[Side]) -> list[str]:
    """What limits the comparison, one sentence each."""
    notes = [sentence] if (sentence := explain_units(sides)) else []
    alone = [side.name for side in sides if len(side.runs) == 1]
    if alone:
        names_alone = " and ".join(alone)
        notes.append(
            f"{names_alone}: one run, so the variation from run to run is not known and ratios have no interval. "
            f"To make repeats: {describe_repeats(sides)}"
        )
    for side in sides:
        notes += describe_mixture(side)
        for run in side.runs:
            notes += [f"{run.path}: {note}" for note in run.notes]
    return notes


def describe_repeats(sides: Sequence[Side]) -> str:
    """The command that trains both configurations in turn, from what the first runs were started with."""
    if any(is_of_script(side.runs[0]) for side in sides):
        return (
            "run each script again a few times, in turn, with an output_dir of its own, then "
            "`python -m training.compare --paired --a A1 A2 A3 --b B1 B2 B3`"
        )
    arguments = [f'--{name} "{find_arguments(side.runs[0])}"' for name, side in zip("ab", sides, strict=False)]
    return f"python -m training.benchmark compare {' '.join(arguments)} --repeat 4"


def is_of_script(run: Run) -> bool:
    """Whether a script of the user's trained it (`Profiled`), not `train.py`."""
    words = str(run.env.get("command") or "").split()
    return bool(words) and not any(word.endswith(TRAIN_PROGRAMS) for word in words)


def find_arguments(run: Run) -> str:
    """Arguments of `train.py` that trained this run, without those that name its place or a checkpoint."""
    words = str(run.env.get("command") or "").split()
    script = next((number for number, word in enumerate(words) if word.endswith(TRAIN_PROGRAMS)), None)
    if script is None:
        return f"--config {run.path / 'config.yaml'}"
    kept: list[str] = []
    rest = iter(words[script + 1 :])
    for word in rest:
        flag = word.lstrip("-").replace("-", "_").partition("=")[0]
        if flag not in OF_ONE_RUN:
            kept.append(word)
        elif word.startswith("--") and "=" not in word:
            next(rest, None)
    return " ".join(kept)


def name_unit(loss_key: str) -> str:
    """Unit of a loss by its key."""
    return NATS.name if loss_key in (NATS.train_key, NATS.eval_key) else BITS.name


def is_phase(row: ComparedRow) -> bool:
    """Whether the row is a phase of a step."""
    return row.key in PHASE_KEYS


def _pair_as_json(pair: Pair) -> dict[str, Any]:
    return {
        "a": pair.a.name,
        "b": pair.b.name,
        "metrics": [{**keep_finite(asdict(row)), "differs": row.interval.differs} for row in pair.rows],
        "losses": [
            {
                **keep_finite(asdict(one)),
                "unit": name_unit(one.key),
                "differs": one.interval.differs if one.interval else not one.equal,
            }
            for one in pair.losses
        ],
        "settings": [asdict(one) for one in pair.settings],
    }
