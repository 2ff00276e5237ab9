"""Where an epoch of our own batches ends. What is restored at a resume is in `test_recipe_trainer.py`."""

from types import SimpleNamespace
from typing import Any

import pytest

from training.trainers.progress_keeper import ProgressKeeper


def run_steps(start: float, epochs: list[float], *, asked: bool = False) -> list[bool]:
    """Whether each step ends an epoch. start: epoch of the data when training starts; epochs: after each step; asked:
    whether the Trainer asks for an end."""
    batches = SimpleNamespace(epoch=start)
    trainer: Any = SimpleNamespace(_resumed_progress=None, train_batches=batches)
    keeper, state, ends = ProgressKeeper(trainer), SimpleNamespace(epoch=None), []
    keeper.on_train_begin(SimpleNamespace(), state, SimpleNamespace())
    for batches.epoch in epochs:
        control = SimpleNamespace(should_epoch_stop=asked)
        keeper.on_step_end(SimpleNamespace(), state, control)
        ends.append(control.should_epoch_stop)
        assert state.epoch == batches.epoch
    return ends


@pytest.mark.parametrize(
    ("start", "epochs", "ends"),
    [
        (0.0, [0.4, 0.8, 1.2, 1.6, 2.0, 2.4], [False, False, True, False, True, False]),
        (1.4, [1.6], [False]),  # resumed within an epoch, which does not end again
    ],
)
def test_an_epoch_ends_with_the_step_that_takes_its_last_row(start, epochs, ends):
    assert run_steps(start, epochs) == ends


def test_an_end_that_the_trainer_asks_for_stays():
    assert run_steps(0.0, [0.5], asked=True) == [True]
