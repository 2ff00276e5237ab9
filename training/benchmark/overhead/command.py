"""Profiling overhead: one training, in which steps are either measured and reported, or not at all.

    python -m training.benchmark overhead [--config NAME] [--steps N] [--output PAGE.md] [KEY=VALUE ...]
    torchrun --nproc_per_node=2 -m training.benchmark overhead …                      (any launcher of train.py)

On: phases, FLOPs, throughput, memory; every `perf.log_every` steps, the period, a record with GPU utilisation to
metrics.jsonl, console and TensorBoard (`training.report_to` for others), over several ranks with its gather. Off: the
same trainer without meter and monitor, hence with nothing to write; what `perf.enabled: false` leaves out besides, the
wrappers of a step's calls (microseconds), is in both. Only neighbours are compared, since a machine drifts from second
to second, in orders that are drawn and turned around in the next period. Three kinds of cost:

- a step without a record: one step on, its neighbour off;
- a record: the step that ends with it and the next one (a tracker's thread writes on) are on, off are the one before
  and the one after them. The Trainer's own logging of losses counts as ours here;
- plots: too rare to compare, so their time is taken out of the steps. What comes after the first one is given as a
  share of all time, the first (it imports matplotlib) in seconds a run.

Each of the first two is a mean over pairs of neighbours without the highest and lowest `TRIM` of them, where a shared
machine's disturbances are: of log ratios in per cent, of differences in ms. `together` is their mean over a period, and
the plots; `untrimmed` is the same of all pairs, with what is rare but dear (garbage collection, a flush) in it. The
intervals are those of a bootstrap over periods, since neighbouring pairs may be disturbed together. They are only as
sharp as the machine is quiet. In ms a step's cost grows little with its length (colder caches: docs/metrics.md), so
short steps (`--config debug`) resolve it where long ones do not. Beside it `accounted`: seconds inside the meter's own
calls and the sinks, timed around each of them in further periods, all on. Sharp, but blind to the rest (reading memory
and GPU, caches, the allocator), and over several ranks with the wait for the slowest in it.

Not in it: evaluation and checkpoints, which are phases of their own. Rank 0's clock; steps end with a barrier and, on
CUDA, a synchronize, in both kinds.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from data_prep.errors import UserError
from training.benchmark.command_line import build_parser
from training.benchmark.overhead.measuring import measure_overhead
from training.benchmark.overhead.page import format_page
from training.benchmark.page import look_at_machine, write_page
from training.launch import read_world


def main(argv: list[str]) -> int:
    """Measure the overhead and write the page; the exit code."""
    parser = build_parser("overhead", __doc__)
    parser.add_argument("--config", default="minigpt_quickstart")
    parser.add_argument("--steps", type=int, default=400, help="steps in turn, on and off together (default 400)")
    parser.add_argument("--output", type=Path, default=Path("runs/overhead.md"))
    options, overrides = parser.parse_known_args(argv)
    if options.steps < 1:
        parser.error(f"--steps {options.steps}: name 1 or more")
    world = read_world()
    launch = "python" if world.size == 1 else f"{world.launcher}, {world.size} ranks:"
    machine = look_at_machine(f"{launch} -m training.benchmark overhead {' '.join(argv)}".strip())
    try:
        result = measure_overhead(options.config, options.steps, overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if isinstance(result, int):
        return result
    if not world.is_main:
        return 0
    page = format_page(result, machine)
    write_page(options.output, page, {"machine": machine, **asdict(result)})
    print(page)
    return 0
