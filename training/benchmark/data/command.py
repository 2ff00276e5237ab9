"""Raw text to batches, each step compared with its real alternative in the same run.

    python -m training.benchmark data --input linux.jsonl [--repeats N] [--only build packing] [--output PAGE.md]
    python -m training.benchmark data --quick

Steps: (1) find the text and describe the machine; (2) measure the rows, each side in fresh processes, interleaved;
(3) write PAGE.json with every number, PAGE.md and PAGE.png. A full run takes about 40 minutes on 2 cores and 6 GB of
disk. It needs an idle machine: otherwise it warns, and the page says so. TRL comes from requirements-dev.txt.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from data_prep.errors import UserError
from training.benchmark import page
from training.benchmark.command_line import build_parser
from training.benchmark.data.building import measure_build, measure_cached, measure_memory, measure_scaling
from training.benchmark.data.inputs import MB, QUICK, Inputs, Settings
from training.benchmark.data.loading import measure_reading, measure_resume
from training.benchmark.data.packing import measure_packing
from training.benchmark.data.report import render, write_result
from training.benchmark.data.row import BenchmarkRow
from training.benchmark.data.text import read_corpus, write_jsonl
from training.benchmark.isolation import ProcessRunner, run_fresh
from training.launch import count_cores

logger = logging.getLogger("redline.benchmark")

ROWS: dict[str, Callable[[Inputs], BenchmarkRow]] = {
    "build": measure_build,
    "packing": measure_packing,
    "cached": measure_cached,
    "memory": measure_memory,
    "reading": measure_reading,
    "resume": measure_resume,
    "scaling": measure_scaling,
}
PACKAGES = ("datasets", "tokenizers", "transformers", "gigatoken", "pyarrow", "trl", "accelerate", "torch", "numpy")
NEEDED = "--input: name JSONL files with a `text` key, {needed:,.0f} MB in all (docs/results/data.md says where from)"


def main(argv: list[str], run: ProcessRunner = run_fresh) -> int:
    """Measure the rows and write the page; the exit code."""
    options = _parse(argv)
    logging.basicConfig(level=logging.INFO, format="benchmark | %(message)s", stream=sys.stderr)
    try:
        if options.render:
            render(options.output)
            return 0
        machine = look_at_machine(argv)
        with tempfile.TemporaryDirectory(prefix="redline-benchmark-", dir=options.work_dir) as work_dir:
            inputs = Inputs(build_settings(options, Path(work_dir), run))
            rows = [measure(name, inputs) for name in ROWS if name in options.only]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_result(rows, machine, options.output)
    print(options.output)
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = build_parser("data", __doc__)
    parser.add_argument("--input", nargs="+", type=Path, default=[], metavar="FILE", help="JSONL files with a text key")
    parser.add_argument("--quick", action="store_true", help="tiny sizes on the embedded corpus, as a check")
    parser.add_argument("--repeats", type=int, help=f"repeats of each side (default {Settings.repeats})")
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS), help="measure these rows only")
    parser.add_argument("--output", type=Path, default=Path("docs/results/data.md"), help="the page to write")
    parser.add_argument("--datasets_mb", type=float, help=f"MB for `datasets` (default {Settings.datasets_mb:g})")
    parser.add_argument("--work_dir", type=Path, help="directory with 4 GB of free space (default: temporary)")
    parser.add_argument("--render", action="store_true", help="measure nothing: write the page again from its JSON")
    return parser.parse_args(argv)


def build_settings(options: argparse.Namespace, work_dir: Path, run: ProcessRunner) -> Settings:
    """Raises UserError when the text is missing, too short or no JSONL with a `text` key."""
    given = {name: value for name in ("repeats", "datasets_mb") if (value := getattr(options, name)) is not None}
    text = tuple(options.input)
    if options.quick and not text:
        text = (work_dir / "corpus.jsonl",)
        write_jsonl(read_corpus(), text[0])
    values: dict[str, Any] = {**(QUICK if options.quick else {}), **given}
    settings = Settings(text=text, work_dir=work_dir, num_proc=count_cores(), run=run, **values)
    check_text(settings)
    return settings


def check_text(settings: Settings) -> None:
    """Raises UserError when the rows cannot be measured on this text."""
    needed = NEEDED.format(needed=settings.needed_mb)
    if not settings.text:
        raise UserError(needed)
    for path in settings.text:
        try:
            with open(path, "rb") as file:
                fits = isinstance(json.loads(file.readline())["text"], str)
        except OSError as error:
            raise UserError(f"--input: {path} cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError):
            fits = False
        if not fits:
            raise UserError(f"{needed}; line 1 of {path} has none")
    size = sum(path.stat().st_size for path in settings.text) / MB
    if size < settings.needed_mb * 0.99:
        raise UserError(f"{needed}; these hold {size:,.0f} MB")


def look_at_machine(argv: list[str]) -> dict[str, Any]:
    """Machine, versions, commit and load; warns when others are using it."""
    load = os.getloadavg()[0]
    busy = load > 0.25 * count_cores()
    if busy:
        logger.warning("load average %.2f on %d cores: speeds will be too low, ratios less so", load, count_cores())
    command = " ".join(["python -m training.benchmark data", *argv])
    memory_gb = psutil.virtual_memory().total / 1e9
    return page.look_at_machine(command, PACKAGES, memory_gb=memory_gb, load_average=load, busy=busy)


def measure(name: str, inputs: Inputs) -> BenchmarkRow:
    """One row, logged."""
    started = time.perf_counter()
    logger.info("%s ...", name)
    row = ROWS[name](inputs)
    logger.info("%s: %s (%.0f s)", name, row.measured, time.perf_counter() - started)
    return row
