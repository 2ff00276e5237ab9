"""What measuring costs: one training, in which blocks of steps are either measured and reported, or not at all.

    python -m training.benchmark overhead [--config NAME] [--steps N] [--output PAGE.md] [KEY=VALUE ...]
    torchrun --nproc_per_node=2 -m training.benchmark overhead …                      (any launcher of train.py)

On: phases, FLOPs, throughput, memory, GPU utilisation; their records to metrics.jsonl, console and TensorBoard
(`training.report_to` for others); over several ranks the gather. Off: the same trainer without any of it, as with
`perf.enabled: false` and nobody to write to; the Trainer itself logs its losses in both. A block is as many steps as
hold each of these once (`perf.log_every`, `monitor.train_every`, `monitor.gpu_every`). Blocks come in fours, on off off
on, so that a linear drift of the machine cancels; a ratio is taken within each pair of neighbours. Three answers:

- interleaved: the median over pairs of (on / off - 1), with the interval of its order statistics. Unbiased, but only as
  sharp as the machine is quiet.
- plots: too rare for a median, so their time is taken out of both kinds, and given as a share of all time.
- accounted: seconds inside the meter's own calls and the sinks, timed around each of them in further blocks of the same
  run, over the seconds of a block. Sharp, but blind to what a call costs outside itself (caches, the allocator).

Not in it: evaluation and checkpoints, which are phases of their own. Rank 0's clock; blocks begin and end with a
barrier and, on CUDA, a synchronize, in both kinds.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from training.benchmark.command_line import build_parser
from training.benchmark.interleave import Median, find_median
from training.config import Config, load_config
from training.environment import describe_machine
from training.launch import read_world, set_environment

PATTERN = (True, False, False, True)
WARMUP_STEPS = 8
LIMIT_PCT = {"cpu": 0.5, "cuda": 0.2}
METER_CALLS = ("add", "end_step", "window", "epoch")
PACKAGES = ("torch", "transformers", "accelerate", "deepspeed")
OWN_FLAGS = ("--eval_strategy", "no", "--save_strategy", "no", "--report_to", "tensorboard", "--resume", "never")


@dataclass(frozen=True)
class Schedule:
    """Blocks of `block_steps` steps: warm-up, `blocks` on or off in turn, then `accounted` on."""

    block_steps: int
    blocks: int

    @property
    def warmup(self) -> int:
        return math.ceil(WARMUP_STEPS / self.block_steps)

    @property
    def accounted(self) -> int:
        return max(2, self.blocks // 4)

    @property
    def steps(self) -> int:
        return (self.warmup + self.blocks + self.accounted) * self.block_steps

    def kind(self, block: int) -> str:
        block -= self.warmup
        if block < 0:
            return "warm-up"
        return "accounted" if block >= self.blocks else "on" if PATTERN[block % len(PATTERN)] else "off"


def plan_schedule(config: Config, steps: int, *, on_gpu: bool) -> Schedule:
    """Of at least `steps` steps on and off together. Raises UserError where there is nothing to measure."""
    if not config.perf.enabled:
        raise UserError("perf.enabled: false leaves nothing to measure")
    every = [config.perf.log_every, config.monitor.train_every, config.monitor.gpu_every if on_gpu else 0]
    block_steps = math.lcm(*(number for number in every if number))
    return Schedule(block_steps, math.ceil(steps / (block_steps * len(PATTERN))) * len(PATTERN))


@dataclass(frozen=True)
class Result:
    """Seconds of blocks by kind, in order, without drawing; `inside`: of each accounted block, what the calls took;
    `drawing`: of each plot."""

    recipe: str
    device: str = ""
    ranks: int = 1
    block_steps: int = 1
    on: list[float] = field(default_factory=list)
    off: list[float] = field(default_factory=list)
    accounted: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    drawing: list[float] = field(default_factory=list)

    @property
    def interleaved_pct(self) -> Median:
        return find_median([100.0 * (on / off - 1.0) for on, off in zip(self.on, self.off, strict=True)])

    @property
    def accounted_pct(self) -> Median:
        pairs = zip(self.inside, self.accounted, strict=True)
        return find_median([100.0 * inside / block for inside, block in pairs])

    @property
    def drawing_pct(self) -> float:
        seconds = sum(self.drawing)
        return 100.0 * seconds / (sum(self.on) + sum(self.off) + sum(self.accounted) + seconds)

    @property
    def limit_pct(self) -> float:
        return LIMIT_PCT[self.device]

    @property
    def verdict(self) -> str:
        low, high = (bound + self.drawing_pct for bound in (self.interleaved_pct.low, self.interleaved_pct.high))
        return "reached" if high <= self.limit_pct else "not reached" if low > self.limit_pct else "not resolved"


class BlockSwitch:
    """Takes away what a trainer measures and reports with, gives it back, block by block, and times the blocks."""

    def __init__(self, trainer: Any, schedule: Schedule, result: Result) -> None:
        from training.callbacks.gpu_monitor import GpuMonitor

        self.trainer, self.meter, self.schedule, self.result = trainer, trainer.meter, schedule, result
        self._callbacks = list(trainer.callback_handler.callbacks)
        self._without_monitor = [one for one in self._callbacks if not isinstance(one, GpuMonitor)]
        self._time_plots()
        self._sinks: list[Any] = []
        self._inside = self._drawing = self._last = 0.0
        self._depth = 0
        self._steps_done = 0
        original = trainer._maybe_log_save_evaluate

        def end_step(*args: Any, **kwargs: Any) -> None:
            original(*args, **kwargs)
            if trainer.state.global_step > self._steps_done:  # the Trainer comes here once more at the end of an epoch
                self._steps_done = trainer.state.global_step
                if not self._steps_done % schedule.block_steps:
                    self._end_block(self._steps_done // schedule.block_steps - 1)

        trainer._maybe_log_save_evaluate = end_step

    def _end_block(self, block: int) -> None:
        seconds = self._now() - self._last - self._drawing
        kind, following = self.schedule.kind(block), self.schedule.kind(block + 1)
        if kind != "warm-up":
            getattr(self.result, kind).append(seconds)
        if kind == "accounted":
            self.result.inside.append(self._inside)
        if block == 0:
            self._sinks = self.trainer._sinks  # they were built when training began
        self._switch(on=following != "off")
        if following == "accounted" and kind != following:
            self._account()
        self._inside = self._drawing = 0.0
        self._last = self._now()

    def _switch(self, *, on: bool) -> None:
        trainer = self.trainer
        if on and trainer.meter is None:
            self.meter.timer.start()
        trainer.meter = self.meter if on else None
        trainer._sinks = self._sinks if on else []
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
        for sink in self._sinks:
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
    """Train in blocks; the exit code of `train.py` where it was not 0. Raises UserError as `plan_schedule` does."""
    from training import train

    with tempfile.TemporaryDirectory(prefix="redline-overhead-") as directory:  # of each rank: nothing is saved
        arguments = ["--config", config, *OWN_FLAGS, "--output_dir", f"{directory}/run", *overrides]
        loaded = load_config(arguments)
        set_environment(read_world(), loaded.config.perf.num_threads)  # before torch comes in
        import torch

        from training import session

        on_gpu = torch.cuda.is_available() and not loaded.config.argument("use_cpu")
        schedule = plan_schedule(loaded.config, steps, on_gpu=on_gpu)
        result = Result(loaded.recipe or "default", block_steps=schedule.block_steps)
        found: list[dict[str, Any]] = []

        def look(trainer: Any) -> None:
            BlockSwitch(trainer, schedule, result)
            found.append({"device": trainer.args.device.type, "ranks": trainer.args.world_size})

        with _built(session, look):
            code = train.main([*arguments, "--max_steps", str(schedule.steps)], finish=lambda *_: None)
    return code or Result(**{**asdict(result), **found[0]})


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
    found, inside, drawing = result.interleaved_pct, result.accounted_pct, result.drawing
    step_ms = 1e3 * find_median([*result.on, *result.off]).median / result.block_steps
    plots = f"{len(drawing)} in {sum(drawing):.1f} s, the first {drawing[0]:.1f} s" if drawing else "none was due"
    low, middle, high = (bound + result.drawing_pct for bound in (found.low, found.median, found.high))
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
        f"{len(result.on)} blocks of {result.block_steps} steps with everything measured and reported, "
        f"{len(result.off)} with nothing, in turn (on off off on), {step_ms:,.1f} ms a step.",
        "",
        "| what | result | aim |",
        "|---|---|---|",
        f"| interleaved: median of on / off - 1 over pairs of neighbours | {found.format(3, '%')}, interval of "
        f"{100 * found.coverage:.0f} % | |",
        f"| plots: share of all time ({plots}) | {result.drawing_pct:.3f} % | |",
        f"| together | {middle:.3f} % ({low:.3f} to {high:.3f}) | <= {result.limit_pct} %: {result.verdict} |",
        f"| accounted: time inside the meter's calls and the sinks / time of the block | {inside.format(4, '%')} | |",
    ]
    if result.verdict == "not resolved":
        lines += ["", "The interval holds the aim: on this machine steps vary too much, or there were too few of them."]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    parser = build_parser("overhead", __doc__)
    parser.add_argument("--config", default="minigpt_quickstart")
    parser.add_argument("--steps", type=int, default=400, help="on and off together, in whole fours of blocks (400)")
    parser.add_argument("--output", type=Path, default=Path("docs/results/overhead.md"))
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
