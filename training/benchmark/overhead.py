"""What measuring costs: one training, in which steps are either measured and reported, or not at all.

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

import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_prep.errors import UserError
from training.benchmark.command_line import build_parser
from training.benchmark.interleave import Median, find_median
from training.config import Config, load_config
from training.environment import describe_machine
from training.launch import read_world, set_environment

WARMUP_STEPS = 8
MIN_PERIOD = 6  # two steps of the record, two beside it, and a pair without one
MIN_PERIODS = 20  # fewer hold too little for a bootstrap
TRIM = 0.2  # of the pairs, at either end
DRAWS = 2000
LEVEL = 0.95
PLOTS_PCT = 0.05  # `callbacks/plotting.MAX_SHARE`
LIMIT_PCT = {"cpu": 0.5, "cuda": 0.2}
METER_CALLS = ("add", "end_step", "window", "epoch")
PACKAGES = ("torch", "transformers", "accelerate", "deepspeed")
OWN_FLAGS = ("--eval_strategy", "no", "--save_strategy", "no", "--report_to", "tensorboard", "--resume", "never")


@dataclass(frozen=True)
class Schedule:
    """Periods of `period` steps, of which the last ends with a record: warm-up, `periods` in turn, `accounted` on."""

    period: int
    periods: int

    @property
    def warmup(self) -> int:
        return math.ceil(WARMUP_STEPS / self.period)

    @property
    def accounted(self) -> int:
        return max(2, self.periods // 8)

    @property
    def steps(self) -> int:
        return (self.warmup + self.periods + self.accounted) * self.period

    def kind(self, step: int) -> Literal["warm-up", "in turn", "accounted", "after"]:
        """Of step 0, 1, …; `after` the last."""
        number = step // self.period - self.warmup
        if number < 0:
            return "warm-up"
        return "in turn" if number < self.periods else "accounted" if step < self.steps else "after"

    def is_on(self, step: int) -> bool:
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


@dataclass(frozen=True)
class Estimate:
    """A mean and the interval around it that covers the true one with probability LEVEL."""

    mean: float
    low: float
    high: float

    def map(self, function: Callable[[float], float]) -> Estimate:
        return Estimate(function(self.mean), function(self.low), function(self.high))

    def format(self, digits: int, unit: str, *, has_interval: bool) -> str:
        interval = f"{self.low:.{digits}f} to {self.high:.{digits}f}" if has_interval else "too few for an interval"
        return f"{self.mean:.{digits}f} {unit} ({interval})"


@dataclass(frozen=True)
class Costs:
    """Of a step without a record, of each of a record's two steps, and of a step on average over a period."""

    plain: Estimate
    record: Estimate
    together: Estimate


def find_costs(plain: np.ndarray, records: np.ndarray, period: int, trim: float = TRIM) -> Costs:
    """From what each pair says, of steps without a record (periods, pairs) and of records (periods,)."""
    periods = len(plain)

    def find_means(drawn: np.ndarray | slice) -> tuple[float, float, float]:
        one, other = find_trimmed_mean(plain[drawn].ravel(), trim), find_trimmed_mean(records[drawn], trim)
        return one, other, ((period - 2) * one + 2 * other) / period

    rng = np.random.default_rng(0)
    draws = [find_means(rng.integers(periods, size=periods)) for _ in range(DRAWS)]
    low, high = np.quantile(draws, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0).tolist()
    return Costs(*(Estimate(*bounds) for bounds in zip(find_means(slice(None)), low, high, strict=True)))


def find_trimmed_mean(values: np.ndarray, trim: float) -> float:
    """Mean of `values` (n,) without the highest and the lowest `trim` of them (Tukey and McLaughlin 1963)."""
    cut = int(trim * len(values))
    return float(np.sort(values)[cut : len(values) - cut].mean())


@dataclass(frozen=True)
class Result:
    """Seconds, without drawing, of each step in turn and of each accounted period; `inside`: of such a period, what the
    calls took; `drawing`: of each plot."""

    recipe: str
    schedule: Schedule
    device: str = ""
    ranks: int = 1
    seconds: list[float] = field(default_factory=list)
    accounted: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    drawing: list[float] = field(default_factory=list)

    @cached_property
    def pct(self) -> Costs:
        return self._find_pct(TRIM)

    @cached_property
    def untrimmed_pct(self) -> Costs:
        return self._find_pct(0.0)

    def _find_pct(self, trim: float) -> Costs:
        """On / off - 1, with the plots in `together`."""
        plain, records = (np.log(pairs[..., 0] / pairs[..., 1]) for pairs in self.schedule.pair(self.seconds))
        found = find_costs(plain, records, self.schedule.period, trim)
        costs = (
            one.map(lambda value: 100.0 * math.expm1(value)) for one in (found.plain, found.record, found.together)
        )
        plain, record, together = costs
        return Costs(plain, record, together.map(lambda value: value + self.drawing_pct))

    @cached_property
    def ms(self) -> Costs:
        """On - off, without plots."""
        plain, records = (1e3 * (pairs[..., 0] - pairs[..., 1]) for pairs in self.schedule.pair(self.seconds))
        return find_costs(plain, records / 2, self.schedule.period)

    @property
    def least_step_ms(self) -> float:
        """Steps from this length on stay within the aim, by the upper end of the interval, plots as often as they may
        be, if they cost as much in ms."""
        return 100.0 * self.ms.together.high / (self.limit_pct - PLOTS_PCT)

    @property
    def drawing_pct(self) -> float:
        """Without the first plot."""
        seconds = sum(self.drawing[1:])
        return 100.0 * seconds / (sum(self.seconds) + sum(self.accounted) + seconds)

    @property
    def accounted_pct(self) -> Median:
        pairs = zip(self.inside, self.accounted, strict=True)
        return find_median([100.0 * inside / period for inside, period in pairs])

    @property
    def has_intervals(self) -> bool:
        return self.schedule.periods >= MIN_PERIODS

    @property
    def limit_pct(self) -> float:
        return LIMIT_PCT[self.device]

    @property
    def verdict(self) -> str:
        found = self.pct.together
        if not self.has_intervals:
            return "not resolved"
        if found.high <= self.limit_pct:
            return "reached"
        return "not reached" if found.low > self.limit_pct else "not resolved"


class StepSwitch:
    """Takes away what a trainer measures and reports with, gives it back, step by step, and times the steps."""

    def __init__(self, trainer: Any, result: Result) -> None:
        from training.callbacks.gpu_monitor import GpuMonitor

        self.trainer, self.meter, self.schedule, self.result = trainer, trainer.meter, result.schedule, result
        self._callbacks = list(trainer.callback_handler.callbacks)
        self._without_monitor = [one for one in self._callbacks if not isinstance(one, GpuMonitor)]
        self._time_plots()
        self._inside = self._drawing = self._last = self._period_seconds = 0.0
        self._depth = 0
        self._done = 0
        original = trainer._maybe_log_save_evaluate

        def end_step(*args: Any, **kwargs: Any) -> None:
            original(*args, **kwargs)
            if trainer.state.global_step > self._done:  # the Trainer comes here once more at the end of an epoch
                self._end_step(self._done)
                self._done += 1

        trainer._maybe_log_save_evaluate = end_step

    def _end_step(self, step: int) -> None:
        seconds = self._now() - self._last - self._drawing
        kind, following = self.schedule.kind(step), self.schedule.kind(step + 1)
        if kind == "in turn":
            self.result.seconds.append(seconds)
        elif kind == "accounted":
            self._period_seconds += seconds
            if not (step + 1) % self.schedule.period:
                self.result.accounted.append(self._period_seconds)
                self.result.inside.append(self._inside)
                self._inside = self._period_seconds = 0.0
        self._switch(on=self.schedule.is_on(step + 1))
        if following == "accounted" and kind != following:
            self._account()
        self._drawing = 0.0
        self._last = time.perf_counter()

    def _switch(self, *, on: bool) -> None:
        trainer = self.trainer
        if on and trainer.meter is None:
            self.meter.timer.start()
            # The Trainer comes to the end of an epoch's last step twice: the second time would count as a step.
            trainer._last_measured_step = trainer.state.global_step
        trainer.meter = self.meter if on else None
        trainer.callback_handler.callbacks = self._callbacks if on else self._without_monitor

    def _now(self) -> float:
        import torch
        import torch.distributed as dist

        if self.trainer.args.device.type == "cuda":
            torch.cuda.synchronize(self.trainer.args.device)
        if dist.is_initialized():
            dist.barrier()
        return time.perf_counter()

    def _time_plots(self) -> None:
        from training.callbacks.plotting import Plotting

        for plotting in (one for one in self._callbacks if isinstance(one, Plotting)):
            draw = plotting._plot

            def plot(draw: Callable[[], None] = draw) -> None:
                start = time.perf_counter()
                draw()
                self.result.drawing.append(time.perf_counter() - start)
                self._drawing += self.result.drawing[-1]

            plotting._plot = plot

    def _account(self) -> None:
        for name in METER_CALLS:
            setattr(self.meter, name, self._inside_of(getattr(self.meter, name)))
        self.meter.timer._change = self._inside_of(self.meter.timer._change)
        for sink in self.trainer._sinks:
            sink.write = self._inside_of(sink.write)

    def _inside_of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self._inside += time.perf_counter() - start

        return timed


def measure_overhead(config: str, steps: int, overrides: list[str]) -> Result | int:
    """Train in turn; the exit code of `train.py` where it was not 0. Raises UserError as `plan_schedule` does."""
    from training import train

    with tempfile.TemporaryDirectory(prefix="redline-overhead-") as directory:  # of each rank: nothing is saved
        arguments = ["--config", config, *OWN_FLAGS, "--output_dir", f"{directory}/run", *overrides]
        loaded = load_config(arguments)
        schedule = plan_schedule(loaded.config, steps)
        arguments += ["--max_steps", str(schedule.steps), f"monitor.train_every={schedule.period}"]
        if loaded.config.monitor.gpu_every:
            arguments.append(f"monitor.gpu_every={schedule.period}")
        result = Result(loaded.recipe or "default", schedule)
        found: list[dict[str, Any]] = []

        def look(trainer: Any) -> None:
            StepSwitch(trainer, result)
            found.append({"device": trainer.args.device.type, "ranks": trainer.args.world_size})

        set_environment(read_world(), loaded.config.perf.num_threads)  # before torch comes in
        from training import session

        with _built(session, look):
            code = train.main(arguments, finish=lambda *_: None)
    return code or replace(result, **found[0])


@contextmanager
def _built(session: Any, look: Callable[[Any], None]) -> Iterator[None]:
    """`look` at each trainer that a session builds."""
    build = session.build_trainer

    def build_and_look(*args: Any, **kwargs: Any) -> Any:
        trainer = build(*args, **kwargs)
        look(trainer)
        return trainer

    session.build_trainer = build_and_look
    try:
        yield
    finally:
        session.build_trainer = build


def format_page(result: Result, machine: dict[str, Any], command: str) -> str:
    pct, drawing, schedule = result.pct, result.drawing, result.schedule
    step_ms = 1e3 * find_median(result.seconds).median
    plots = f"{len(drawing) - 1} after the first, which took {drawing[0]:.1f} s" if drawing else "none was due"
    records = schedule.periods - 1
    shown = {"has_interval": result.has_intervals}
    length = ""
    if result.has_intervals and result.least_step_ms > 0:
        length = (
            f"reached by steps of {result.least_step_ms:,.0f} ms and more if they cost as much, {PLOTS_PCT} % left for "
            "plots"
        )
    lines = [
        "# What measuring costs, as measured",
        "",
        f"{machine['cpu_count']} cores of {machine['cpu']}; {machine['platform']}, Python {machine['python']}, "
        + ", ".join(f"{name} {machine[name]}" for name in PACKAGES if machine[name])
        + f". Commit {machine['git_commit']}.",
        "",
        f"Command: `{command}`.",
        "",
        f"Recipe `{result.recipe}`, {result.ranks} rank{'s' * (result.ranks > 1)} on {result.device}: "
        f"{len(result.seconds):,} steps of {step_ms:,.1f} ms (median), a record every {schedule.period}; neighbours "
        "with everything measured and reported and with nothing, in turn. Means over pairs without the highest and "
        f"lowest {100 * TRIM:.0f} %; intervals of {100 * LEVEL:.0f} %, bootstrapped over periods.",
        "",
        "| what | result | aim |",
        "|---|---|---|",
        f"| a step without a record: on / off - 1, {records * ((schedule.period - 4) // 2):,} pairs | "
        f"{pct.plain.format(3, '%', **shown)} | |",
        f"| a record's step and the next: on / off - 1, {records:,} pairs | {pct.record.format(3, '%', **shown)} | |",
        f"| plots: share of all time ({plots}) | {result.drawing_pct:.3f} % | |",
        f"| together, over a period of {schedule.period} steps | {pct.together.format(3, '%', **shown)} | "
        f"<= {result.limit_pct} %: {result.verdict} |",
        "| together, untrimmed: what is rare but dear is in it | "
        f"{result.untrimmed_pct.together.format(3, '%', **shown)} | |",
        f"| in ms a step, without plots | {result.ms.together.format(2, 'ms', **shown)} | {length} |",
        f"| accounted: time inside the meter's calls and the sinks / time of the period | "
        f"{result.accounted_pct.format(4, '%')} | |",
    ]
    if result.verdict == "not resolved":
        lines += ["", "Not resolved: on this machine steps vary too much, or there were too few of them."]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    parser = build_parser("overhead", __doc__)
    parser.add_argument("--config", default="minigpt_quickstart")
    parser.add_argument("--steps", type=int, default=400, help="steps in turn, on and off together (default 400)")
    parser.add_argument("--output", type=Path, default=Path("runs/overhead.md"))
    options, overrides = parser.parse_known_args(argv)
    if options.steps < 1:
        parser.error(f"--steps {options.steps}: name 1 or more")
    world = read_world()
    machine = describe_machine(PACKAGES)  # first: the commit is that of the code that runs
    try:
        result = measure_overhead(options.config, options.steps, overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if isinstance(result, int):
        return result
    if not world.is_main:
        return 0
    launch = "python" if world.size == 1 else f"{world.launcher}, {world.size} ranks:"
    command = f"{launch} -m training.benchmark overhead {' '.join(argv)}".strip()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(format_page(result, machine, command), encoding="utf-8")
    content = {"machine": machine, "command": command, **asdict(result)}
    options.output.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(options.output.read_text(encoding="utf-8"))
    return 0
