"""Which blocks of steps are measured, what is inside the meter, and what the page says of it."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from data_prep.errors import UserError
from training.benchmark import overhead
from training.benchmark.__main__ import main as dispatch
from training.benchmark.overhead import BlockSwitch, Result, Schedule, format_page, plan_schedule
from training.callbacks.gpu_monitor import GpuMonitor
from training.callbacks.plotting import Plotting

MACHINE = dict.fromkeys(("cpu_count", "cpu", "platform", "python", "git_commit", *overhead.PACKAGES), "x")


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
    monkeypatch.setattr(overhead.time, "perf_counter", lambda: clock.now)
    return clock


@pytest.fixture
def trainer(clock):
    """Steps of ten seconds, four of the meter; it writes after every second one. Step 31 begins with a plot."""
    trainer = SimpleNamespace(
        meter=Meter(clock), args=SimpleNamespace(device=torch.device("cpu")), state=SimpleNamespace(global_step=0)
    )
    trainer._sinks = []
    plotting, monitor = Plotting.__new__(Plotting), GpuMonitor.__new__(GpuMonitor)
    plotting._plot = lambda: setattr(clock, "now", clock.now + 100)
    trainer.callback_handler = SimpleNamespace(callbacks=[plotting, monitor])

    def end_step():
        if trainer.meter:
            trainer.meter.end_step()
        if trainer.state.global_step % 2 == 0:
            for sink in trainer._sinks:
                sink.write(trainer.state.global_step)

    def train(steps, sink):
        trainer._sinks = [sink]
        seen = []
        for step in range(steps):
            seen.append((trainer.meter is not None, monitor in trainer.callback_handler.callbacks))
            if step == 30:
                plotting._plot()
            clock.now += 10
            if trainer.meter:
                trainer.meter.add()
            trainer.state.global_step += 1
            trainer._maybe_log_save_evaluate()
        return seen

    trainer._maybe_log_save_evaluate, trainer.train = end_step, train
    return trainer


def test_blocks_are_on_and_off_in_turn_and_then_accounted(clock, trainer):
    schedule, result, sink = Schedule(block_steps=2, blocks=8), Result("x"), Sink(clock)
    assert (schedule.warmup, schedule.accounted, schedule.steps) == (4, 2, 28)
    BlockSwitch(trainer, schedule, result)
    seen = trainer.train(schedule.steps + 4, sink)
    on = [True, True, False, False, False, False, True, True]
    assert [meter for meter, _ in seen[8:28]] == on * 2 + [True] * 4
    assert all(meter == monitor for meter, monitor in seen)
    assert sink.steps == [2, 4, 6, 8, 10, 16, 18, 24, 26, 28, 30, 32]  # those of blocks that were on
    assert result.on == [2 * 14.0 + 5] * 4
    assert result.off == [20.0] * 4
    assert result.accounted == [33.0] * 4  # without the plot, which was drawn in the last but one
    assert result.inside == [2 * 4.0 + 5] * 4  # an inner call is not counted twice
    assert result.drawing == [100.0]
    assert result.drawing_pct == pytest.approx(100 * 100 / (4 * 33 + 4 * 20 + 4 * 33 + 100))


def test_a_block_holds_every_record_once():
    config = SimpleNamespace(
        perf=SimpleNamespace(enabled=True, log_every=10), monitor=SimpleNamespace(train_every=4, gpu_every=50)
    )
    assert plan_schedule(config, 100, on_gpu=False) == Schedule(block_steps=20, blocks=8)
    assert plan_schedule(config, 100, on_gpu=True) == Schedule(block_steps=100, blocks=4)
    config.perf.enabled = False
    with pytest.raises(UserError, match=r"perf\.enabled"):
        plan_schedule(config, 100, on_gpu=False)


@pytest.mark.parametrize(
    ("on", "drawing", "verdict"),
    [(1.001, 0.0, "reached"), (1.001, 0.5, "not reached"), (1.02, 0.0, "not reached"), (None, 0.0, "not resolved")],
    ids=["low", "plots", "high", "noisy"],
)
def test_the_page_judges_by_the_interval_and_the_plots(on, drawing, verdict):
    blocks = [on or (0.9 if i % 2 else 1.1) for i in range(40)]
    result = Result("tiny", "cpu", 2, 10, blocks, [1.0] * 40, [1.0] * 4, [0.001] * 4, [drawing] * bool(drawing))
    page = format_page(result, MACHINE, "command")
    assert f"<= 0.5 %: {verdict} |" in page
    assert ("The interval holds the aim" in page) == (verdict == "not resolved")
    assert "0.1000 %" in page and "2 ranks on cpu" in page
    assert ("none was due" in page) == (not drawing)
    assert f"{50 * ((on or 1) + 1):.1f} ms a step" in page  # blocks of ten steps, half of them of a second


def test_real_ranks_are_measured_and_one_writes(tmp_path):
    page = tmp_path / "overhead.md"
    flags = ["--config", "debug", "--steps", "8", "--output", str(page), "perf.log_every=2", "perf.num_threads=1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "training.benchmark"]
    data = [f"data.store_dir={tmp_path / 'stores'}", "data.num_proc=1", "monitor.plot_every=4"]
    done = subprocess.run(
        [*command, "overhead", *flags, *data], capture_output=True, text=True, timeout=300, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(page.with_suffix(".json").read_text())
    assert (found["ranks"], found["block_steps"], found["device"]) == (2, 2, "cpu")
    assert (len(found["on"]), len(found["off"]), len(found["accounted"])) == (2, 2, 2)
    assert all(0 < inside < block for inside, block in zip(found["inside"], found["accounted"], strict=True))
    assert len(found["drawing"]) == 1
    assert done.stdout.count("# What measuring costs") == 1
    # (max_steps 16) 4 blocks of warm-up, 2 of the 4 in turn, 2 accounted: one line of the console each
    assert done.stdout.count("MFU ") - done.stdout.count("MFU is against") == 8


def test_what_train_py_refuses_is_its_exit_code(capsys):
    assert dispatch(["overhead", "--config", "no such recipe"]) == 2
    assert "error: " in capsys.readouterr().err
