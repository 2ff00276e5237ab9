"""What a variant gave: tokens/s and memory against the configuration as it is, and whether the losses are the same.

Ratios are taken within groups of neighbouring runs (`comparing.intervals`), each interval at 95 % on its own: of twenty
variants one may look different by chance, which is why what is advised was run once more, together, in new rounds.

Losses are compared step by step. Runs see the same rows with the same weights, so a variant that only computes
otherwise differs by rounding: at most `ROUNDING` of the loss, or three times what the configuration itself differs by
from run to run where that is more. What differs by more is another training, whatever the lever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from training.benchmark.advise.levers import Variant
from training.comparing.intervals import Interval, find_interval
from training.comparing.sides import find_windows
from training.metrics import names
from training.reporting.run_reader import Run

ROUNDING = 0.005
LESS_MEMORY = 0.98  # a saving below 2 % is none
NOISE_FACTOR = 3.0


@dataclass(frozen=True)
class Trial:
    """What one run measured. losses: by step, nats per token."""

    tokens_per_second: float
    peak_gib: float | None
    losses: dict[int, float]


@dataclass(frozen=True)
class Verdict:
    """Of a variant over its rounds. loss_change: the largest relative difference at a step; memory: None where it was
    not measured."""

    variant: Variant
    rounds: int
    speed: Interval
    memory: Interval | None
    loss_change: float
    loss_limit: float

    @property
    def keeps_training(self) -> bool:
        """Whether the losses are those of the configuration as it is."""
        return not self.variant.changes_training and self.loss_change <= self.loss_limit

    @property
    def is_faster(self) -> bool:
        """Whether the interval of the speed is above 1."""
        return self.speed.low is not None and bool(self.speed.differs) and self.speed.estimate > 1

    @property
    def saves_memory(self) -> bool:
        """Below `LESS_MEMORY` in its interval; peaks that are the same in every round need none."""
        memory = self.memory
        return memory is not None and memory.differs is not False and memory.estimate < LESS_MEMORY


def read_trial(run: Run) -> Trial | None:
    """None when the run has no counted step: its first ones are left out."""
    rate = find_windows(run, names.PERF_TOKENS_PER_SECOND)
    if rate is None:
        return None
    losses = run.series(names.TRAIN_LOSS)
    by_step = dict(zip(losses.steps.tolist(), losses.values.tolist(), strict=True))
    peaks = run.series(names.PERF_MEMORY_PEAK_GIB).finite().values
    return Trial(rate.mean(), float(peaks.max()) if len(peaks) else None, by_step)


def judge(variant: Variant, pairs: Sequence[tuple[Trial, Trial]], loss_limit: float) -> Verdict:
    """pairs: (as it is, with the variant), one a round."""
    before, after = ([pair[side] for pair in pairs] for side in (0, 1))
    speed = find_interval(
        [trial.tokens_per_second for trial in before], [trial.tokens_per_second for trial in after], paired=True
    )
    changes = [find_loss_change(one.losses, other.losses) for one, other in pairs]
    return Verdict(variant, len(pairs), speed, _compare_memory(before, after), max(changes), loss_limit)


def _compare_memory(before: Sequence[Trial], after: Sequence[Trial]) -> Interval | None:
    sides = [[trial.peak_gib for trial in side if trial.peak_gib] for side in (before, after)]
    if any(len(side) < len(before) for side in sides):
        return None
    return find_interval(*sides, paired=True)


def find_loss_limit(baselines: Sequence[Trial]) -> float:
    """How much losses of the same training may differ, relative; `baselines`: the configuration's own runs."""
    noise = max((find_loss_change(baselines[0].losses, trial.losses) for trial in baselines[1:]), default=0.0)
    return max(ROUNDING, NOISE_FACTOR * noise)


def find_loss_change(a: dict[int, float], b: dict[int, float]) -> float:
    """The largest |b - a| / |a| over the steps that both have; infinite without any, or where one is not finite."""
    common = a.keys() & b.keys()
    changes = [abs(b[step] - a[step]) / abs(a[step]) if a[step] else float("inf") for step in common]
    return max((change if change == change else float("inf") for change in changes), default=float("inf"))
