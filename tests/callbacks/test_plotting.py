"""Curves are drawn when steps say so, at each checkpoint, and for a small share of the time."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from training.callbacks import plotting
from training.callbacks.plotting import MAX_SHARE, Plotting
from training.run_dir import RunDir


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(plotting.time, "monotonic", lambda: clock.now)
    return clock


def drawn_steps(clock, tmp_path, *, steps, step_seconds, plot_seconds, every=2, saves=()):
    trainer = SimpleNamespace(span=lambda name: nullcontext())
    callback = Plotting(trainer, RunDir(tmp_path), every, None)  # pyright: ignore[reportArgumentType]
    drawn = []

    def plot():
        drawn.append(step)
        clock.now += plot_seconds

    callback._plot = plot
    for step in range(steps):
        state = SimpleNamespace(global_step=step)
        callback.on_step_begin(None, state, None)
        clock.now += step_seconds
        state.global_step += 1
        callback.on_step_end(None, state, None)
        if state.global_step in saves:
            callback.on_save(None, state, None)
    step = steps
    callback.on_train_end(None, None, None)
    return drawn


def test_slow_steps_are_drawn_as_often_as_asked(clock, tmp_path):
    # at the beginning of the step after
    assert drawn_steps(clock, tmp_path, steps=8, step_seconds=600, plot_seconds=0.5) == [2, 4, 6]


def test_quick_steps_are_drawn_for_a_small_share_of_the_time(clock, tmp_path):
    steps = 25_000
    drawn = drawn_steps(clock, tmp_path, steps=steps, step_seconds=0.1, plot_seconds=0.1)
    assert drawn[0] == 2 and 0.8 * MAX_SHARE < 0.1 * len(drawn) / (0.1 * steps) <= 1.2 * MAX_SHARE


def test_a_checkpoint_has_its_curves_at_once(clock, tmp_path):
    drawn = drawn_steps(clock, tmp_path, steps=10, step_seconds=0.1, plot_seconds=0.5, saves=(3, 7))
    assert drawn == [2, 3, 7]


def test_the_checkpoint_of_the_last_step_has_its_curves(clock, tmp_path):
    drawn = drawn_steps(clock, tmp_path, steps=6, step_seconds=0.1, plot_seconds=0.5, saves=(3, 6))
    assert drawn == [2, 3, 6]
