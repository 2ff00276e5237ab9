"""What goes into a record, where a record goes, and what a checkpoint keeps of it."""

import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from tests.callbacks.test_contract import Counts
from training.metrics import names
from training.trainers.recorder import SAVED, Elapsed, Recorder, read_saved, save_state


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.records: list[Any] = []
        self.closed = 0

    def write(self, record: Any) -> None:
        self.records.append(record)

    def close(self) -> None:
        self.closed += 1


LOGS = {
    "loss": 2.5, "grad_norm": 0.5, "rewards/margins": 0.25, "eval_accuracies": 0.75, "eval_runtime": 3.0, "step": 4,
    "epoch": 0.5, "num_tokens": 96.0, "train_loss": 2.6, "note": "text", "flag": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("keeps_all", "others"), [(True, {"train/rewards/margins": 0.25, "eval/accuracies": 0.75}), (False, {})]
)
def test_metrics_of_the_trainer_get_their_names(keeps_all, others):
    recorder = Recorder(keeps_all=keeps_all)
    recorder.add_logs(LOGS)
    assert recorder.record == {names.TRAIN_LOSS: 2.5, names.TRAIN_GRAD_NORM: 0.5} | others


def test_a_record_goes_to_each_sink_once():
    first, second = Kept(), Kept()
    recorder = Recorder(sinks=[first, second])
    assert not recorder.has_record
    recorder.add({names.TRAIN_LOSS: 2.5})
    assert recorder.has_record
    recorder.write({"step": 4})
    assert first.records == second.records == [{"step": 4, names.TRAIN_LOSS: 2.5}]
    assert not recorder.has_record
    recorder.close()
    recorder.close()
    assert (first.closed, second.closed) == (1, 1)


def test_seconds_count_from_the_first_look_at_the_clock():
    elapsed = Elapsed(seconds=10.0)
    elapsed.advance(100.0)
    assert elapsed.seconds == 10.0
    elapsed.advance(102.5)
    assert elapsed.seconds == 12.5


def test_a_checkpoint_keeps_tokens_seconds_and_callbacks(tmp_path):
    (checkpoint := tmp_path / "checkpoint-4").mkdir()
    recorder = Recorder(progress=Elapsed(seconds=1.5, tokens=96))
    (kept := Counts()).steps = 4
    save_state(tmp_path, 4, recorder, SimpleNamespace(callbacks=[kept]))
    resumed, counts = Recorder(), Counts()
    resumed.restore(read_saved(str(checkpoint)), [counts])
    assert (resumed.progress.seconds, resumed.progress.tokens, resumed.progress.tokens_before) == (1.5, 96, 96)
    assert counts.steps == 4


def test_nothing_is_saved_where_the_trainer_saved_nothing(tmp_path):
    save_state(tmp_path, 4, Recorder(), SimpleNamespace(callbacks=[]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_damaged_state_is_one_line_and_counts_from_zero(text, tmp_path, caplog):
    (tmp_path / SAVED).write_text(text)
    with caplog.at_level(logging.WARNING, logger="redline.train"):
        assert read_saved(str(tmp_path)) == {}
    assert len(caplog.messages) == 1 and str(tmp_path / SAVED) in caplog.messages[0]


def test_a_start_from_scratch_and_a_checkpoint_of_another_trainer_have_no_state(tmp_path, caplog):
    assert read_saved(None) == read_saved(str(tmp_path)) == {} and not caplog.messages


def test_the_state_is_json(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    save_state(tmp_path, 2, Recorder(progress=Elapsed(0.5, 8)), SimpleNamespace(callbacks=[]))
    assert json.loads((tmp_path / "checkpoint-2" / SAVED).read_text()) == {"seconds": 0.5, "tokens": 8, "callbacks": {}}
