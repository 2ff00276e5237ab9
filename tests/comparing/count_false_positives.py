"""How often whole pages of real repeats of one configuration name a difference.

    python -m tests.comparing.count_false_positives RUNS_DIRECTORY

Splits the runs at random into two sides of 2, 3 and 6, and compares them as `training.compare` does. Splits share
runs, so they are no independent trials.
"""

from __future__ import annotations

import random
import sys

from training.comparing.comparison import Comparison, compare
from training.comparing.sides import Side, load_side
from training.metrics import names

SPLITS = 60


def find_differences(comparison: Comparison) -> tuple[bool, bool]:
    """Whether the page names a difference in speed, and in any row or loss."""
    (pair,) = comparison.pairs
    speed = pair.find(names.PERF_STEP_MS)
    rows = [row.interval.differs for row in pair.rows]
    losses = [loss.interval.differs for loss in pair.losses if loss.interval]
    return bool(speed and speed.interval.differs), any(map(bool, rows + losses))


def main(directory: str) -> None:
    """Print a table."""
    runs = load_side("A", [directory]).runs
    draw = random.Random(0)
    print(f"{len(runs)} runs\n\n| runs a side | splits | speed differs | any row differs |\n|--:|--:|--:|--:|")
    for size in (2, 3, 6):
        if 2 * size > len(runs):
            continue
        found = []
        for _ in range(SPLITS):
            chosen = draw.sample(runs, 2 * size)
            sides = Side("A", tuple(chosen[:size])), Side("B", tuple(chosen[size:]))
            found.append(find_differences(compare(sides)))
        speed, row = (sum(one[at] for one in found) for at in (0, 1))
        print(f"| {size} | {SPLITS} | {speed} | {row} |")


if __name__ == "__main__":
    main(sys.argv[1])
