"""Which steps are measured, what is inside the meter, and what the page says of it."""

import json
from types import SimpleNamespace

import pytest
import torch

from training.benchmark import overhead
from training.benchmark.__main__ import main as dispatch
from training.benchmark.overhead import WARMUP_STEPS, Result, StepSwitch, format_page

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


def test_steps_are_on_and_off_in_turn_and_then_accounted(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(overhead.time, "perf_counter", lambda: clock.now)
    measured = []
    device = torch.device("cpu")
    trainer = SimpleNamespace(
        meter=Meter(clock), args=SimpleNamespace(device=device), state=SimpleNamespace(global_step=0)
    )
    trainer._maybe_log_save_evaluate = lambda: trainer.meter and trainer.meter.end_step()
    switch = StepSwitch(trainer, steps=8, accounted=4)
    for _ in range(WARMUP_STEPS + 8 + 4):
        measured.append(trainer.meter is not None)
        clock.now += 10
        if trainer.meter:
            trainer.meter.add()
        trainer.state.global_step += 1
        trainer._maybe_log_save_evaluate()
    assert measured[WARMUP_STEPS:] == [True, False, False, True] * 2 + [True] * 4
    assert switch.seconds["on"] == [14.0] * 4
    assert switch.seconds["off"] == [10.0] * 4
    assert switch.seconds["accounted_steps"] == [14.0] * 4
    assert switch.seconds["accounted"] == [4.0] * 4  # an inner call is not counted twice


@pytest.mark.parametrize(
    ("on", "verdict"), [(1.001, "reached"), (1.02, "not reached"), (None, "not resolved")], ids=["low", "high", "noisy"]
)
def test_the_page_judges_by_the_interval(on, verdict):
    off = [1.0] * 40
    steps = [on or (0.9 if i % 2 else 1.1) for i in range(40)]
    page = format_page(Result("cpu", "tiny", steps, off, [0.001] * 4, [1.0] * 4), MACHINE, "command")
    assert f"<= 0.5 %: {verdict} |" in page
    assert ("The interval holds the aim" in page) == (verdict == "not resolved")
    assert "0.1000 %" in page


def test_a_real_run_is_measured(tmp_path, capsys):
    page = tmp_path / "overhead.md"
    flags = ["--config", "debug", "--steps", "8", "--output", str(page), "checkpoint.verify_final=false"]
    assert dispatch(["overhead", *flags, f"data.store_dir={tmp_path / 'stores'}", "data.num_proc=1"]) == 0
    found = json.loads(page.with_suffix(".json").read_text())
    assert (len(found["on"]), len(found["off"]), len(found["accounted"])) == (4, 4, 4)
    assert all(0 < inside < step for inside, step in zip(found["accounted"], found["accounted_steps"], strict=True))
    assert overhead.main(["--config", "no such recipe"]) == 2
    assert "error: " in capsys.readouterr().err
