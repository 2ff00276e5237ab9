"""Where an epoch of our own batches ends. What is restored at a resume is in `test_recipe_trainer.py`."""

from types import SimpleNamespace
from typing import Any

from training.trainers.progress_keeper import ProgressKeeper


def test_an_epoch_ends_with_the_step_that_takes_its_last_row():
    batches = SimpleNamespace(epoch=0.0)
    trainer: Any = SimpleNamespace(_resumed_progress=None, train_batches=batches)
    keeper, state = ProgressKeeper(trainer), SimpleNamespace(epoch=None)
    keeper.on_train_begin(SimpleNamespace(), state, SimpleNamespace())
    ends = []
    for batches.epoch in (0.4, 0.8, 1.2, 1.6, 2.0, 2.4):
        control = SimpleNamespace(should_epoch_stop=False)
        keeper.on_step_end(SimpleNamespace(), state, control)
        ends.append(control.should_epoch_stop)
        assert state.epoch == batches.epoch
    assert ends == [False, False, True, False, True, False]


def test_an_end_that_the_trainer_asks_for_stays():
    trainer: Any = SimpleNamespace(_resumed_progress=None, train_batches=SimpleNamespace(epoch=0.0))
    keeper = ProgressKeeper(trainer)
    keeper.on_train_begin(SimpleNamespace(), SimpleNamespace(), SimpleNamespace())
    trainer.train_batches.epoch, control = 0.5, SimpleNamespace(should_epoch_stop=True)
    keeper.on_step_end(SimpleNamespace(), SimpleNamespace(), control)
    assert control.should_epoch_stop


def test_a_resume_within_an_epoch_does_not_end_it_again():
    trainer: Any = SimpleNamespace(_resumed_progress=None, train_batches=SimpleNamespace(epoch=1.4))
    keeper = ProgressKeeper(trainer)
    keeper.on_train_begin(SimpleNamespace(), SimpleNamespace(), SimpleNamespace())
    trainer.train_batches.epoch, control = 1.6, SimpleNamespace(should_epoch_stop=False)
    keeper.on_step_end(SimpleNamespace(), SimpleNamespace(), control)
    assert not control.should_epoch_stop
