"""What the Trainer does with numbers that are not finite, at its seams; whole runs are in integration/."""

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.callbacks.test_contract import Counts
from training.callbacks.run_events import RunEvents
from training.checkpoints.progress import Progress
from training.run_dir import RunDir
from training.trainers.progress_keeper import ProgressKeeper
from training.trainers.recipe_trainer import RecipeTrainer
from training.trainers.text_counter import TextCounter


@pytest.mark.parametrize(("sums", "loss", "last_logged"), [([4.5], 4.5, 8), ([math.nan], 0.0, 10), ([None], 0.0, 10)])
def test_a_running_loss_that_is_not_finite_is_not_taken_up(sums, loss, last_logged):
    counts = Counts()
    trainer: Any = SimpleNamespace(
        _resumed_progress=Progress(sums, 8, 100, unlogged=[6, 20], callbacks={"Counts": {"steps": 7}}),
        _text=TextCounter(), _tr_loss=torch.tensor(0.0), _globalstep_last_logged=10,
        callback_handler=SimpleNamespace(callbacks=[counts]), train_batches=SimpleNamespace(epoch=0.0), meter=None,
    )  # fmt: skip
    state = SimpleNamespace(global_step=10, max_steps=20, log_history=[{"loss": math.nan}], best_metric=math.inf)
    args: Any = SimpleNamespace(world_size=1, process_index=0)
    ProgressKeeper(trainer).on_train_begin(args, state, SimpleNamespace())
    assert (trainer._tr_loss.item(), trainer._globalstep_last_logged) == (loss, last_logged)
    assert (trainer._text.tokens, trainer._text.text_bytes) == ((6, 20) if loss else (0, 0))
    assert counts.steps == 7
    assert (state.log_history, state.best_metric) == ([{"loss": None}], None)


@pytest.mark.parametrize(
    ("name", "losses", "best"), [("loss", [3.0, math.nan, 2.0], 2.0), ("eval_loss", [math.nan], None)]
)
def test_a_loss_that_is_not_finite_is_never_the_best(name, losses, best):
    args = SimpleNamespace(metric_for_best_model=name, greater_is_better=False, save_strategy="no")
    trainer: Any = RecipeTrainer.__new__(RecipeTrainer)
    trainer.args, trainer.state = args, SimpleNamespace(best_metric=None, global_step=1)
    chosen = [trainer._determine_best_metric({"eval_loss": loss}, None) for loss in losses]
    assert chosen == [math.isfinite(loss) for loss in losses] and trainer.state.best_metric == best


def test_a_validation_loss_that_is_not_finite_is_an_event(tmp_path):
    events = RunEvents(SimpleNamespace(), RunDir(tmp_path), None)
    for step, loss in ((1, 2.5), (2, math.nan)):
        events.on_evaluate(None, SimpleNamespace(global_step=step), None, {"eval_loss": loss})
    found = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(event["kind"], event.get("eval_loss")) for event in found] == [("eval", None), ("not_finite", "nan")]
