"""Profiling overhead: one training whose steps are either measured and reported, or not.

    python -m training.benchmark overhead [--config NAME] [--steps N] [--output PAGE.md] [KEY=VALUE ...]
    torchrun --nproc_per_node=2 -m training.benchmark overhead …                      (any launcher of train.py)

On: phases, FLOPs, throughput and memory are measured. Every `perf.log_every` steps (the period), a record with GPU
utilization goes to metrics.jsonl, console and TensorBoard (or to other trackers by `training.report_to`), with its
gather over the ranks. Off: the same trainer without meter and monitor, so nothing is written. The wrappers around the
calls of a step (microseconds), which `perf.enabled: false` removes, are there in both.

A machine drifts from second to second, so only neighbouring steps are compared. Their order is drawn at random, and
reversed in the next period. There are three kinds of cost:

- A step without a record: one step is on, its neighbour is off.
- A record: the step that ends with it and the next one are on (the thread of a tracker continues to write), the steps
  before and after these two are off. The Trainer's own logging of losses counts as profiling here.
- Plots are too rare to compare, so their time is subtracted from the steps. The first plot imports matplotlib and is
  given in seconds per run, the others as a share of all time.

The cost of a step and of a record is the mean over pairs of neighbours without the highest and lowest 20 %, which
contain the disturbances of a shared machine: of log ratios in percent, of differences in ms. `together` is their mean
over a period, plus the plots. `untrimmed` is the same over all pairs, so it includes events that are rare but expensive
(garbage collection, a flush). Intervals come from a bootstrap over periods, because neighbouring pairs may be disturbed
together. They are narrow only on a quiet machine. The cost in ms hardly depends on the length of a step (see
docs/metrics.md on cold caches), so short steps (`--config debug`) resolve it where long ones do not.

`accounted` is the time inside the calls of meter and sinks, measured around each call in further periods that are all
on. It is precise, but it leaves out everything else (reading memory and GPU, caches, the allocator). With several ranks
it includes the wait for the slowest one.

Evaluation and checkpoints are left out: they are phases of their own. The clock is that of rank 0. In both kinds, steps
end with a barrier, and on CUDA with a synchronization.
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
