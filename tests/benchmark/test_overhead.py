"""Which steps are measured, what is inside the meter, and what the page says of it."""

import json
import math
import os
import random
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from data_prep.errors import UserError
from training.benchmark.__main__ import main as dispatch
from training.benchmark.overhead import measuring
from training.benchmark.overhead.measuring import StepSwitch
from training.benchmark.overhead.page import format_page
from training.benchmark.overhead.result import PLOTS_PCT, Result
from training.benchmark.overhead.schedule import Schedule, plan_schedule
from training.callbacks.gpu_monitor import GpuMonitor
from training.callbacks.plotting import MAX_SHARE, Plotting
from training.trainers import Profiled

MACHINE: dict[str, Any] = dict.fromkeys(
    ("cpu_count", "cpu", "platform", "python", "git_commit", "started", "command", "torch"), "x"
)
MACHINE["packages"] = ["torch"]


class Meter:
    """Takes a second of the hand clock for each call; the timer another two inside `end_step`."""

    def __init__(self, clock):
        self.clock = clock
        self.timer = SimpleNamespace(start=lambda: None, _change=self._tick(2))

    def _tick(self, seconds):
        return lambda *_: setattr(self.clock, "now", self.clock.now + seconds)

    def add(self):
        self.clock.now += 1

    def end_step(self):
        self.clock.now += 1
        self.timer._change()

    def window(self):
        self.clock.now += 1

    epoch = window


class Sink:
    def __init__(self, clock):
        self.clock = clock
        self.steps = []

    def write(self, step):
        self.clock.now += 5
        self.steps.append(step)


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock.now)
    return clock


@pytest.fixture
def trainer(clock):
    """Steps of ten seconds, four of the meter; a record after every sixth, five more; two begin with plots."""
    trainer = SimpleNamespace(
        meter=Meter(clock), args=SimpleNamespace(device=torch.device("cpu")), state=SimpleNamespace(global_step=0)
    )
    trainer.recorder, trainer.last_measured_step, trainer.written = SimpleNamespace(sinks=[]), 0, 0
    plotting, monitor = Plotting.__new__(Plotting), GpuMonitor.__new__(GpuMonitor)
    plotting._plot = lambda: setattr(clock, "now", clock.now + 100)
    trainer.callback_handler = SimpleNamespace(callbacks=[plotting, monitor])
    trainer.pause_measuring = lambda: Profiled.pause_measuring(cast(Any, trainer))

    def end_step():
        step = trainer.state.global_step
        if trainer.meter and step > trainer.last_measured_step:  # as Profiled does
            trainer.last_measured_step = step
            trainer.meter.end_step()
        if step % 6 == 0 and step > trainer.written:
            trainer.written = step
            for sink in trainer.recorder.sinks:
                sink.write(step)

    def train(steps, sink):
        trainer.recorder.sinks = [sink]
        seen = []
        for step in range(steps):
            seen.append((trainer.meter is not None, monitor in trainer.callback_handler.callbacks))
            if step in (20, 60):
                plotting._plot()
            clock.now += 10
            if trainer.meter:
                trainer.meter.add()
            trainer.state.global_step += 1
            trainer._maybe_log_save_evaluate()
            if step % 7 == 0:  # an epoch ends
                trainer._maybe_log_save_evaluate()
        return seen

    trainer._maybe_log_save_evaluate, trainer.train = end_step, train
    return trainer


def test_steps_are_on_and_off_in_turn_and_then_accounted(clock, trainer):
    schedule, sink = Schedule(period=6, periods=8), Sink(clock)
    result = Result("x", schedule, device="cpu")
    assert (schedule.warmup, schedule.accounted, schedule.steps) == (2, 2, 72)
    StepSwitch(trainer, result)
    seen = trainer.train(schedule.steps, sink)
    on = [meter for meter, _ in seen]
    assert on[:12] == on[60:] == [True] * 12
    periods = [on[start : start + 6] for start in range(12, 60, 6)]
    assert all(one[:2] == [True, False] and one[4:] == [False, True] for one in periods)
    assert all(one[2] != one[3] for one in periods)
    assert all(one[2] != other[2] for one, other in zip(periods[::2], periods[1::2], strict=True))  # turned around
    assert len({one[2] for one in periods[::2]}) == 2  # drawn
    assert all(meter == monitor for meter, monitor in seen)
    assert sink.steps == list(range(6, 73, 6))  # every record is written
    assert len(result.seconds) == 48
    plain, records = schedule.pair(result.seconds)
    assert plain.tolist() == [[[14.0, 10.0]]] * 7  # the last period has no neighbour
    assert records.tolist() == [[19.0 + 14.0, 20.0]] * 7
    assert_costs(result.ms, 4000.0, 6500.0, 1e3 * (4 * 4 + 13) / 6)
    assert PLOTS_PCT == 100 * MAX_SHARE
    assert result.least_step_ms == pytest.approx(1e5 * (4 * 4 + 13) / 6 / 0.45)
    together = 100 * (1.4 ** (4 / 6) * 1.65 ** (2 / 6) - 1)  # ratios multiply
    assert_costs(result.pct, 40.0, 65.0, together + result.drawing_pct)
    assert result.accounted == [6 * 14.0 + 5] * 2  # without the plot
    assert result.inside == [6 * 4.0 + 5] * 2  # an inner call is not counted twice
    assert result.drawing == [100.0, 100.0]
    assert result.drawing_pct == pytest.approx(100 * 100 / (sum(result.seconds) + 2 * 89 + 100))


def assert_costs(costs, *expected):
    for found, value in zip((costs.plain, costs.record, costs.together), expected, strict=True):
        assert (found.low, found.mean, found.high) == pytest.approx((value, value, value))


def test_neighbours_are_compared_whatever_the_period():
    for period in (6, 7, 10, 11):
        schedule = Schedule(period, 4)
        start = schedule.warmup * period
        seconds = [2.0 if schedule.is_on(start + step) else 1.0 for step in range(4 * period)]
        plain, records = schedule.pair(seconds)
        assert plain.tolist() == [[[2.0, 1.0]] * ((period - 4) // 2)] * 3
        assert records.tolist() == [[4.0, 2.0]] * 3
        assert_costs(Result("x", schedule, "cpu", seconds=seconds).ms, 1e3, 1e3, 1e3)
        first = [schedule.is_on(start + 2 + number * period) for number in range(4)]
        assert first[0] != first[1] and first[2] != first[3]


def test_intervals_hold_the_truth_on_a_machine_that_drifts_and_stalls(monkeypatch):
    monkeypatch.setattr("training.benchmark.overhead.result.DRAWS", 400)
    schedule, noise, held = Schedule(10, 60), random.Random(1), 0
    for _ in range(100):
        seconds, slow = [], 0.0
        for step in range(600):
            slow = 0.95 * slow + noise.gauss(0, 0.03)
            place = step % 10
            cost = (0.03 if place in (0, 9) else 0.01) if schedule.is_on(schedule.warmup * 10 + step) else 0.0
            stall = noise.expovariate(2) if noise.random() < 0.03 else 0.0
            seconds.append((1 + cost) * (1 + stall) * math.exp(slow + noise.gauss(0, 0.03)))
        found = Result("x", schedule, "cpu", seconds=seconds).pct.together
        held += found.low <= 0.8 * 1 + 0.2 * 3 <= found.high
        assert found.high - found.low < 3.0  # and they are of use
    assert held >= 90, held


def test_what_is_rare_but_dear_shows_untrimmed():
    schedule = Schedule(6, 200)
    seconds = [1.0] * 1200
    first = schedule.warmup * 6
    dear = [step for step in range(1200) if schedule.is_on(first + step) and step % 6 in (2, 3)][::10]
    for step in dear:
        seconds[step] = math.exp(1.0)
    result = Result("x", schedule, "cpu", seconds=seconds)
    assert_costs(result.pct, 0.0, 0.0, 0.0)
    assert result.untrimmed_pct.plain.mean == pytest.approx(100 * math.expm1(0.1), rel=0.02)


@pytest.mark.parametrize(
    ("perf", "words"),
    [
        ({"enabled": False, "log_every": 10}, r"perf\.enabled"),
        ({"enabled": True, "log_every": 5}, r"perf\.log_every: 5"),
    ],
    ids=["off", "too often"],
)
def test_what_cannot_be_measured_is_refused(perf, words):
    with pytest.raises(UserError, match=words):
        plan_schedule(cast(Any, SimpleNamespace(perf=SimpleNamespace(**perf))), 100)


@pytest.mark.parametrize(
    ("on", "drawing", "verdict"),
    [(1.001, 0.0, "reached"), (1.001, 2.0, "not reached"), (1.02, 0.0, "not reached"), (None, 0.0, "not resolved")],
    ids=["low", "plots", "high", "noisy"],
)
def test_the_page_judges_by_the_interval_and_the_plots(on, drawing, verdict):
    schedule = Schedule(10, 40)
    noise = random.Random(1)
    seconds = [
        (on or noise.choice([0.9, 1.1])) if schedule.is_on(schedule.warmup * 10 + step) else 1.0 for step in range(400)
    ]
    result = Result("tiny", schedule, "cpu", 2, seconds, [1.0] * 4, [0.001] * 4, [9.0, drawing] * bool(drawing))
    page = format_page(result, MACHINE)
    assert f"<= 0.5 %: {verdict} |" in page
    assert ("Not resolved: on this machine" in page) == (verdict == "not resolved")
    assert "0.1000 %" in page and "2 ranks on cpu: 400 steps of 1,0" in page
    assert ("none was due" in page) == (not drawing)


@pytest.mark.parametrize(("periods", "on"), [(2, 1.001), (40, 0.9)], ids=["few", "below"])
def test_no_interval_of_a_few_periods_and_no_length_for_a_cost_below_zero(periods, on):
    schedule = Schedule(10, periods)
    start = schedule.warmup * 10
    seconds = [on if schedule.is_on(start + step) else 1.0 for step in range(10 * periods)]
    page = format_page(Result("tiny", schedule, "cpu", 1, seconds, [1.0] * 4, [0.001] * 4, []), MACHINE)
    assert page.count("too few for an interval") == (5 if periods == 2 else 0)
    assert "reached by steps of" not in page


def test_real_ranks_are_measured_and_one_writes(tmp_path):
    page = tmp_path / "overhead.md"
    flags = ["--config", "debug", "--steps", "10", "--output", str(page), "perf.log_every=6", "perf.num_threads=1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "training.benchmark"]
    data = [f"data.store_dir={tmp_path / 'stores'}", "data.num_proc=1", "monitor.plot_every=4"]
    done = subprocess.run(
        [*command, "overhead", *flags, *data], capture_output=True, text=True, timeout=300, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(page.with_suffix(".json").read_text())
    assert (found["ranks"], found["schedule"], found["device"]) == (2, {"period": 6, "periods": 2}, "cpu")
    assert (len(found["seconds"]), len(found["accounted"])) == (12, 2)
    assert all(0 < inside < period for inside, period in zip(found["inside"], found["accounted"], strict=True))
    assert len(found["drawing"]) == 1
    assert done.stdout.count("# Profiling overhead") == 1
    # two periods of warm-up, two in turn, two accounted: a line of the console each
    assert done.stdout.count("MFU ") - done.stdout.count("MFU is against") == 6


@pytest.mark.parametrize("wrong", ["perf.log_everyy=10", "model.config.hidden_size=63"])
def test_what_is_refused_before_and_by_train_py_is_an_exit_code(wrong, tmp_path, capsys):
    page = tmp_path / "page.md"
    # as the deepspeed launcher would start it
    flags = ["--config", "debug", "perf.log_every=6", wrong, "--output", str(page)]
    assert dispatch(["--local_rank=0", "overhead", *flags]) == 2
    assert "error: " in capsys.readouterr().err
    assert not page.exists()


def test_too_few_steps_resolve_nothing():
    for periods, verdict in ((2, "not resolved"), (18, "not resolved"), (20, "reached")):
        result = Result("x", Schedule(6, periods), "cpu", 1, [1.0] * 6 * periods, [6.0] * 2, [0.0] * 2)
        assert result.verdict == verdict
