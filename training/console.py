"""The console commands of an installed Redline: `redline-train` is `python training/train.py`, and so on.

Each imports its module when it is called, so that a missing package is one line.
"""

from __future__ import annotations

import importlib
import sys

from data_prep.command import describe_missing, run_command


def _run(module: str, *, prints: bool) -> int:
    try:
        main = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        if (missing := describe_missing(error)) is None:
            raise
        sys.stderr.write(f"error: {missing}\n")
        return 2
    return run_command(main, prints=prints)


def train() -> int:
    """Train a model."""
    return _run("training.train", prints=False)


def plan() -> int:
    """Predict memory, steps and FLOPs of a run."""
    return _run("training.plan", prints=True)


def prepare() -> int:
    """Build a token store."""
    return _run("data_prep.prepare", prints=False)


def inspect() -> int:
    """Show a token store."""
    return _run("data_prep.inspect", prints=True)


def report() -> int:
    """Build the report of a run."""
    return _run("training.report", prints=True)


def compare() -> int:
    """Compare runs."""
    return _run("training.compare", prints=True)


def monitor() -> int:
    """Watch a run in the terminal."""
    return _run("training.monitor", prints=True)


def supervise() -> int:
    """Keep a training going over failures."""
    return _run("training.supervise", prints=False)


def generate() -> int:
    """Generate text with a trained model."""
    return _run("training.generate", prints=True)


def export() -> int:
    """Export a trained model to another format."""
    return _run("training.export", prints=False)


def benchmark() -> int:
    """Run a benchmark by its name."""
    return _run("training.benchmark.__main__", prints=False)
