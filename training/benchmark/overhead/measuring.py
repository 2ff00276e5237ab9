"""The training itself: a trainer whose meter and sinks are taken away and given back, step by step."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from training.benchmark.overhead.result import Result
from training.benchmark.overhead.schedule import plan_schedule
from training.config import load_config
from training.launch import read_world, set_environment

METER_CALLS = ("add", "end_step", "window", "epoch")
OWN_FLAGS = ("--eval_strategy", "no", "--save_strategy", "no", "--report_to", "tensorboard", "--resume", "never")


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
        self._resume: Callable[[], None] | None = None
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
        if on and self._resume is not None:
            self._resume()
            self._resume = None
        elif not on and self._resume is None:
            self._resume = trainer.pause_measuring()
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
        for sink in self.trainer.recorder.sinks:
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
        from training.run import session

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
