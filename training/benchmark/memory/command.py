"""Predicted peak memory of a rank, compared with the measured peak of real steps, over a grid of configurations.

    python -m training.benchmark memory [--output PAGE.md] [--only N …] [--cpu]
    python -m training.benchmark memory --quick

Each configuration trains two real optimizer steps in its own process, on a GPU if there is one. The second step is
measured: on CUDA by `torch.cuda.max_memory_allocated`, on a CPU by the events of PyTorch's allocator, and for some
configurations by resident memory as well. Of several ranks, the one with the highest peak counts. On GPUs each rank
needs its own GPU. The command writes PAGE.json with every number, and PAGE.md. The grid takes about 6 minutes on 2
cores.
"""

import argparse
import dataclasses
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from training.benchmark.command_line import build_parser
from training.benchmark.isolation import ProcessRunner, run_fresh
from training.benchmark.memory.grid import GRID, QUICK, RESIDENT, Case, GridInputs
from training.benchmark.memory.measuring import MeasuredCase, find_gpus, measure_case, write_inputs
from training.benchmark.memory.report import render, write_result
from training.benchmark.page import look_at_machine
from training.launch import count_cores, find_free_port

logger = logging.getLogger("redline.benchmark")

# glibc keeps freed blocks below these sizes; then resident memory is what was once allocated, not what is.
RESIDENT_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def main(argv: list[str], run: ProcessRunner = run_fresh) -> int:
    """Measure the grid and write the page; the exit code."""
    options = _parse(argv)
    logging.basicConfig(level=logging.INFO, format="benchmark | %(message)s", stream=sys.stderr)
    try:
        if options.render:
            render(options.output)
            return 0
        cases = QUICK if options.quick else GRID
        if options.only and not all(1 <= number <= len(cases) for number in options.only):
            raise UserError(f"--only {' '.join(map(str, options.only))}: the grid has the numbers 1 to {len(cases)}")
        cases = [cases[number - 1] for number in options.only] if options.only else cases
        machine = look_at_machine(" ".join(["python -m training.benchmark memory", *argv]))
        gpus = [] if options.cpu else run(find_gpus).value
        with tempfile.TemporaryDirectory(prefix="redline-benchmark-", dir=options.work_dir) as work_dir:
            inputs = GridInputs(Path(work_dir), use_cpu=not gpus)
            run(write_inputs, inputs)
            rows = measure_all(cases, inputs, run, len(gpus))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    machine["device"] = gpus[0] if gpus else "CPU"
    write_result(rows, machine, options.output)
    print(options.output)
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = build_parser("memory", __doc__)
    parser.add_argument("--quick", action="store_true", help="four small configurations, as a check")
    parser.add_argument(
        "--only", nargs="+", type=int, default=[], metavar="N", help="only these rows of the grid, from 1"
    )
    parser.add_argument("--cpu", action="store_true", help="measure on the CPU even if there is a GPU")
    parser.add_argument("--output", type=Path, default=Path("docs/results/memory.md"), help="the page to write")
    parser.add_argument("--work_dir", type=Path, help="directory with 200 MB of free space (default: temporary)")
    parser.add_argument("--render", action="store_true", help="measure nothing: write the page again from its JSON")
    return parser.parse_args(argv)


def measure_all(cases: list[Case], inputs: GridInputs, run: ProcessRunner, num_gpus: int) -> list[dict[str, Any]]:
    """Rows in the order of the cases; as many at once as a CPU has cores, since nothing here is timed."""
    with ThreadPoolExecutor(count_cores() if inputs.use_cpu else 1) as pool:
        rows = list(pool.map(lambda case: measure(case, inputs, run, num_gpus), cases))
        if inputs.use_cpu:
            both = [
                (case, row) for case, row in zip(cases, rows, strict=True) if case in RESIDENT and "reason" not in row
            ]
            with _environment(RESIDENT_ENVIRONMENT):
                peaks = list(pool.map(lambda pair: run(measure_case, pair[0], inputs, "resident").value.measured, both))
            for (_, row), peak in zip(both, peaks, strict=True):
                row["resident"] = peak
    return rows


def measure(case: Case, inputs: GridInputs, run: ProcessRunner, num_gpus: int) -> dict[str, Any]:
    """One row. A configuration that cannot run here says why instead of a number."""
    try:
        if not inputs.use_cpu and case.ranks > num_gpus:
            raise RuntimeError(f"needs {case.ranks} GPUs, here is {num_gpus}")
        measured = measure_ranks(case, inputs, run)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        logger.warning("%s: %s", case.name, reason)
        return {"name": case.name, "case": dataclasses.asdict(case), "reason": reason}
    row = {**dataclasses.asdict(measured), "case": dataclasses.asdict(case), "error_pct": measured.error_pct}
    sizes = (measured.predicted / 1e6, measured.measured / 1e6, measured.error_pct)
    logger.info("%s: predicted %.1f MB, measured %.1f MB, %+.2f %%", case.name, *sizes)
    return row


def measure_ranks(case: Case, inputs: GridInputs, run: ProcessRunner) -> MeasuredCase:
    """All ranks at once, each in a process of its own; the one with the highest peak."""
    if case.ranks == 1:
        return run(measure_case, case, inputs).value
    port = find_free_port()
    with ThreadPoolExecutor(case.ranks) as pool:
        ranks = [pool.submit(run, measure_case, case, inputs, "allocator", rank, port) for rank in range(case.ranks)]
        found = [one.result().value for one in as_completed(ranks)]  # the first failure is the cause of the others
    return max(found, key=lambda measured: measured.measured)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """For processes that are started meanwhile; the C library reads it when they begin."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.__setitem__(key, value)
