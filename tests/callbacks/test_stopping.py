"""What the Trainer is told to do about a signal, at each place where the ranks compare what was asked of them."""

import json
import os
import signal
from types import SimpleNamespace

import pytest

from training.callbacks.stopping import Stopping
from training.ranks import Agreement
from training.run_dir import RunDir
from training.stop_signals import Stopped, StopSignals

STATE = SimpleNamespace(global_step=7)


@pytest.fixture
def stopping(tmp_path):
    with StopSignals() as signals:
        stopping = Stopping(RunDir(tmp_path), signals, Agreement(5.0), writes=True)
        stopping.on_train_begin(None, STATE, None)
        yield stopping


def end_step(stopping):
    control = SimpleNamespace(should_save=False, should_evaluate=True)
    stopping.on_pre_optimizer_step(None, STATE, control)
    stopping.on_step_end(None, STATE, control)
    return control.should_save, control.should_evaluate


def test_a_step_without_a_signal_stays_as_it_is(stopping):
    assert end_step(stopping) == (False, True)


def test_a_stop_saves_without_an_evaluation_and_ends_after_the_save(stopping, tmp_path):
    os.kill(os.getpid(), signal.SIGTERM)
    assert end_step(stopping) == (True, False)
    with pytest.raises(Stopped) as stopped:
        stopping.on_save(None, STATE, None)
    assert stopped.value.exit_code == 143
    assert json.loads((tmp_path / "events.jsonl").read_text())["message"] == "SIGTERM: saving after this step"


def test_a_request_to_save_is_done_once(stopping):
    os.kill(os.getpid(), signal.SIGUSR1)
    assert end_step(stopping) == (True, True)
    stopping.on_save(None, STATE, None)
    assert end_step(stopping) == (False, True)


def test_an_evaluation_is_cut_short(stopping):
    os.kill(os.getpid(), signal.SIGINT)
    stopping.on_prediction_step(None, STATE, None)  # posted with this batch, read with the next
    with pytest.raises(Stopped):
        stopping.on_prediction_step(None, STATE, None)


def test_a_save_under_way_is_the_last(stopping):
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped):
        stopping.on_save(None, STATE, None)
