"""Steps that fp16 leaves out: events, and a running loss that is the mean of the steps that were taken."""

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from training.metrics import names
from training.run_dir import RunDir
from training.trainers.finite import NotFiniteError
from training.trainers.skipped_steps import SkippedSteps


def build_trainer(path) -> Any:
    """As the Trainer is with torch's loss scaling; `take` does a step of it, as far as the losses are concerned."""
    scaler = SimpleNamespace(scale=65536.0, get_scale=lambda: scaler.scale)
    return SimpleNamespace(
        accelerator=SimpleNamespace(scaler=scaler, optimizer_step_was_skipped=False),
        is_deepspeed_enabled=False, run_dir=RunDir(path), args=SimpleNamespace(should_save=True),
        state=SimpleNamespace(global_step=0), _tr_loss=torch.tensor(0.0), _globalstep_last_logged=0,
    )  # fmt: skip


def take(trainer: Any, skipped: SkippedSteps, loss: float, overflows: bool) -> None:
    skipped.begin_step()
    trainer._tr_loss += loss
    trainer.state.global_step += 1
    trainer.accelerator.optimizer_step_was_skipped = overflows
    if overflows:
        trainer.accelerator.scaler.scale /= 2
    skipped.end_step()


def test_a_step_left_out_is_an_event_and_the_mean_is_of_the_others(tmp_path):
    trainer = build_trainer(tmp_path)
    skipped = SkippedSteps(trainer)
    for loss, overflows in ((2.0, False), (math.nan, True), (7.0, True), (4.0, False)):
        take(trainer, skipped, loss, overflows)
    mean = trainer._tr_loss.item() / (trainer.state.global_step - trainer._globalstep_last_logged)
    assert mean == 3.0
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(event["kind"], event["step"], event["loss_scale"]) for event in events] == [
        ("skipped_step", 2, 32768.0), ("skipped_step", 3, 16384.0),
    ]  # fmt: skip
    assert skipped.take_record() == {names.TRAIN_SKIPPED_STEPS: 2.0} and skipped.take_record() == {}


def test_steps_that_overflow_at_any_scale_end_the_run(tmp_path):
    trainer = build_trainer(tmp_path)
    skipped = SkippedSteps(trainer)
    with pytest.raises(NotFiniteError, match="17 steps in a row were skipped, the loss scale is down to 0.5"):
        for _ in range(60):
            take(trainer, skipped, math.inf, True)
    assert trainer.state.global_step == 17  # 2^16 halved 17 times


def test_without_loss_scaling_nothing_is_copied_or_told(tmp_path):
    trainer = build_trainer(tmp_path)
    trainer.accelerator.scaler = None
    skipped = SkippedSteps(trainer)
    take(trainer, skipped, 2.0, False)
    assert trainer._tr_loss.item() == 2.0 and not (tmp_path / "events.jsonl").exists()


def test_deepspeed_counts_them_itself(tmp_path):
    trainer = build_trainer(tmp_path)
    engine = SimpleNamespace(skipped_steps=3, fp16_enabled=lambda: True, optimizer=SimpleNamespace(loss_scale=512.0))
    trainer.is_deepspeed_enabled, trainer.model_wrapped = True, engine
    skipped = SkippedSteps(trainer)
    take(trainer, skipped, 2.0, False)
    assert not (tmp_path / "events.jsonl").exists()
    skipped.begin_step()
    trainer._tr_loss += math.nan
    engine.skipped_steps += 1
    skipped.end_step()
    assert trainer._tr_loss.item() == 2.0 and '"loss_scale": 512.0' in (tmp_path / "events.jsonl").read_text()
