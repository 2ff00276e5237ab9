"""Trains several runs one after another in one launch: `several_runs.py ARGUMENTS --then ARGUMENTS …`.

With `--refused` among its arguments, a run has to end with exit code 2; with `--unfinished`, nothing comes after its
last step.

What has to start in a fresh process, such as a resume, is launched by itself; other runs share one launch's imports.
"""

import itertools
import sys
from pathlib import Path
from typing import Any

THEN, REFUSED, UNFINISHED = "--then", "--refused", "--unfinished"


def main(argv: list[str], finish: Any = None) -> int:
    """finish: what comes after the last step of each run, instead of `final/` and the report."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from training import train
    from training.run import session

    session.leave_world = lambda: None  # DeepSpeed keeps the groups of the world that it saw first
    local_rank = [flag for flag in argv[:1] if flag.startswith("--local_rank")]  # deepspeed's launcher puts it first
    runs = [list(run) for is_then, run in itertools.groupby(argv[len(local_rank) :], THEN.__eq__) if not is_then]
    return max(check(train, local_rank, run, finish) for run in runs)


def check(train, local_rank, run, finish):
    arguments = [flag for flag in run if flag not in (REFUSED, UNFINISHED)]
    code = train.main([*local_rank, *arguments], finish=leave if UNFINISHED in run else finish)
    return int(code != 2) if REFUSED in run else code


def leave(*_):
    """Neither final/ nor a report."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
