"""Which steps of a training are measured and which are not, and which of them are compared."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_prep.errors import UserError
from training.config import Config

WARMUP_STEPS = 8
MIN_PERIOD = 6  # two steps of the record, two beside it, and a pair without one


@dataclass(frozen=True)
class Schedule:
    """Periods of `period` steps, of which the last ends with a record: warm-up, `periods` in turn, `accounted` on."""

    period: int
    periods: int

    @property
    def warmup(self) -> int:
        """Periods before anything counts."""
        return math.ceil(WARMUP_STEPS / self.period)

    @property
    def accounted(self) -> int:
        """Periods in which measuring calls are timed."""
        return max(2, self.periods // 8)

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return (self.warmup + self.periods + self.accounted) * self.period

    def kind(self, step: int) -> Literal["warm-up", "in turn", "accounted", "after"]:
        """Of step 0, 1, …; `after` the last."""
        number = step // self.period - self.warmup
        if number < 0:
            return "warm-up"
        return "in turn" if number < self.periods else "accounted" if step < self.steps else "after"

    def is_on(self, step: int) -> bool:
        """Whether measuring is on in this step."""
        if self.kind(step) != "in turn":
            return True
        number, place = divmod(step - self.warmup * self.period, self.period)
        if place in (0, self.period - 1):
            return True
        if place in (1, self.period - 2):
            return False
        pair = place // 2  # they begin at even places
        drawn = random.Random(f"{number // 2} {pair}").randrange(2)
        return (place + number + drawn) % 2 == 0

    def pair(self, seconds: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """From the seconds of all steps in turn, [on, off] of steps without a record (periods, pairs, 2), and of
        records with the step after each, two steps together (periods, 2). Without the last period: its record has no
        neighbour after it."""
        plain: list[list[list[float]]] = []
        records: list[list[float]] = []
        for start in range(0, len(seconds) - self.period, self.period):
            pairs = [seconds[start + place : start + place + 2] for place in range(2, self.period - 3, 2)]
            first = self.warmup * self.period + start + 2
            plain.append([[*pair] if self.is_on(first + 2 * at) else [*pair][::-1] for at, pair in enumerate(pairs)])
            before, record, after, last = seconds[start + self.period - 2 : start + self.period + 2]
            records.append([record + after, before + last])
        return np.array(plain), np.array(records)


def plan_schedule(config: Config, steps: int) -> Schedule:
    """Of at least `steps` steps in turn. Raises UserError where there is nothing to measure."""
    if not config.perf.enabled:
        raise UserError("perf.enabled: false leaves nothing to measure")
    period = config.perf.log_every
    if period < MIN_PERIOD:
        raise UserError(
            f"perf.log_every: {period} leaves no steps between two records to compare: {MIN_PERIOD} or more"
        )
    return Schedule(period, 2 * math.ceil(steps / (2 * period)))
