"""What measuring costs: one training, in which every step is either measured or not.

    python -m training.benchmark overhead [--config NAME] [--steps N] [--output PAGE.md] [KEY=VALUE ...]

Steps come in fours, on off off on, so that a linear drift of the machine cancels; a ratio is taken within each pair of
neighbours. On: phases, FLOPs, throughput and memory, logged every `perf.log_every` steps. Off: the same trainer without
its meter, as with `perf.enabled: false`; losses and learning rate are logged in both. Two answers:

- interleaved: the median over pairs of (on / off - 1), with the interval of its order statistics. Unbiased, but only as
  sharp as the machine is quiet.
- accounted: seconds inside the meter's own calls, timed around each of them in further steps of the same run, over the
  seconds of a step. Sharp, but blind to what a call costs outside itself (caches, the allocator).

Not in it: evaluation, checkpoints, trackers and plots, which are phases of their own and cost what they are seen to
cost (plots by steps at most 0.5 % of the time, `callbacks/plotting.py`); a rank's part in the gather of a record.

One process; on CUDA each step begins and ends with a synchronize, in both kinds.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from training.benchmark.command_line import build_parser
from training.benchmark.interleave import Median, find_median
from training.environment import describe_machine

PATTERN = (True, False, False, True)
WARMUP_STEPS = 8
LIMIT_PCT = {"cpu": 0.5, "cuda": 0.2}
METER_CALLS = ("add", "end_step", "window", "epoch")
PACKAGES = ("torch", "transformers", "accelerate")
OWN_FLAGS = ("--eval_strategy", "no", "--save_strategy", "no", "--report_to", "none")


@dataclass(frozen=True)
class Result:
    """Seconds of the steps by kind, in order; of each step with accounting also those inside the meter."""

    device: str
    recipe: str
    on: list[float]
    off: list[float]
    accounted: list[float]
    accounted_steps: list[float]

    @property
    def interleaved_pct(self) -> Median:
        return find_median([100.0 * (on / off - 1.0) for on, off in zip(self.on, self.off, strict=True)])

    @property
    def accounted_pct(self) -> Median:
        pairs = zip(self.accounted, self.accounted_steps, strict=True)
        return find_median([100.0 * inside / step for inside, step in pairs])

    @property
    def limit_pct(self) -> float:
        return LIMIT_PCT[self.device]


class StepSwitch:
    """Takes a trainer's meter away and gives it back, step by step, and times the steps.

    The first `steps` steps after the warm-up are on or off; in the `accounted` steps after them, all on, time inside
    the meter is summed up.
    """

    def __init__(self, trainer: Any, steps: int, accounted: int) -> None:
        self.trainer, self.meter = trainer, trainer.meter
        self.steps, self.num_accounted = steps, accounted
        self.seconds: dict[str, list[float]] = {"on": [], "off": [], "accounted": [], "accounted_steps": []}
        self._inside = 0.0
        self._depth = 0
        self._done = 0
        self._last = 0.0
        original = trainer._maybe_log_save_evaluate

        def end_step(*args: Any, **kwargs: Any) -> None:
            original(*args, **kwargs)
            if trainer.state.global_step > self._done:  # the Trainer comes here once more at the end of an epoch
                self._end_step()

        trainer._maybe_log_save_evaluate = end_step

    def _kind(self, step: int) -> str:
        step -= WARMUP_STEPS
        if step < 0:
            return "warm-up"
        return "accounted_steps" if step >= self.steps else "on" if PATTERN[step % len(PATTERN)] else "off"

    def _end_step(self) -> None:
        now = _now(self.trainer.args.device)
        kind = self._kind(self._done)
        if kind != "warm-up":
            self.seconds[kind].append(now - self._last)
        if kind == "accounted_steps":
            self.seconds["accounted"].append(self._inside)
        self._done += 1
        following = self._kind(self._done)
        self.trainer.meter = None if following == "off" else self.meter
        if following != "off":
            self.meter.timer.start()
        if following == "accounted_steps" and kind != following:
            self._account()
        self._inside = 0.0
        self._last = _now(self.trainer.args.device)

    def _account(self) -> None:
        for name in METER_CALLS:
            setattr(self.meter, name, self._inside_of(getattr(self.meter, name)))
        timer = self.meter.timer
        timer._change = self._inside_of(timer._change)

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


def _now(device: Any) -> float:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure_overhead(config: str, steps: int, overrides: list[str]) -> Result:
    """Train `steps` steps in turn and a quarter as many with accounting. Raises UserError as training does."""
    from training import session
    from training.config import load_config
    from training.launch import configure_logging, read_world, set_environment

    accounted = max(4, steps // 4)
    with tempfile.TemporaryDirectory(prefix="redline-overhead-") as directory:
        flags = ["--max_steps", str(WARMUP_STEPS + steps + accounted), "--output_dir", f"{directory}/run"]
        loaded = load_config(["--config", config, *OWN_FLAGS, *flags, *overrides])
        if not loaded.config.perf.enabled:
            raise UserError("perf.enabled: false leaves nothing to measure")
        world = read_world()
        set_environment(world, loaded.config.perf.num_threads)
        configure_logging(world)
        switches: list[StepSwitch] = []
        with _built(session, lambda trainer: switches.append(StepSwitch(trainer, steps, accounted))):
            session.run_training(loaded, world)
        device = switches[0].trainer.args.device.type
        return Result(device, loaded.recipe, **switches[0].seconds)


@contextmanager
def _built(session: Any, look: Callable[[Any], None]) -> Any:
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
    found, inside = result.interleaved_pct, result.accounted_pct
    limit = result.limit_pct
    verdict = "reached" if found.high <= limit else "not reached" if found.low > limit else "not resolved"
    step = find_median([*result.on, *result.off])
    lines = [
        "# What measuring costs, as measured",
        "",
        f"{machine['cpu_count']} cores of {machine['cpu']}; {machine['platform']}, Python {machine['python']}, "
        + ", ".join(f"{name} {machine[name]}" for name in PACKAGES)
        + f". Commit {machine['git_commit']}.",
        "",
        f"Command: `{command}`.",
        "",
        f"Recipe `{result.recipe}`, one process on {result.device}, {len(result.on)} steps with everything measured "
        f"and {len(result.off)} without, in turn (on off off on), {1e3 * step.median:,.1f} ms a step.",
        "",
        "| what | result | aim |",
        "|---|---|---|",
        f"| interleaved: median of on / off - 1 over pairs of neighbours | {found.format(3, '%')}, interval of "
        f"{100 * found.coverage:.0f} % | <= {limit} %: {verdict} |",
        f"| accounted: time inside the meter's calls / time of the step | {inside.format(4, '%')} | |",
    ]
    if verdict == "not resolved":
        lines += ["", "The interval holds the aim: on this machine steps vary too much, or there were too few of them."]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    parser = build_parser("overhead", __doc__)
    parser.add_argument("--config", default="minigpt_quickstart")
    parser.add_argument("--steps", type=int, default=400, help="on and off together, rounded up to fours (default 400)")
    parser.add_argument("--output", type=Path, default=Path("docs/results/overhead.md"))
    options, overrides = parser.parse_known_args(argv)
    if options.steps < 1:
        parser.error(f"--steps {options.steps}: name 1 or more")
    steps = -(-options.steps // len(PATTERN)) * len(PATTERN)
    machine = describe_machine(PACKAGES)  # first: the commit is that of the code that runs
    try:
        result = measure_overhead(options.config, steps, overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    command = "python -m training.benchmark overhead " + " ".join(argv)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(format_page(result, machine, command.strip()), encoding="utf-8")
    content = {"machine": machine, "command": command.strip(), **asdict(result)}
    options.output.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(options.output.read_text(encoding="utf-8"))
    return 0
