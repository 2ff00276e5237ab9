"""On real optimizers and schedules: the first resumed step has the new options, whatever the checkpoint holds."""

from types import SimpleNamespace

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import get_scheduler

from training.trainers.resumed_options import AsBuilt, apply_changes

STEPS, DONE = 10, 4


def build(rate, decay, beta2, schedule="linear"):
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": [weights[0]], "weight_decay": decay}, {"params": [weights[1]], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, beta2), eps=1e-8)
    return optimizer, get_scheduler(schedule, optimizer, 0, STEPS)


def resume(new, old, changes, **more):
    """The optimizer and schedule of a run built with `new` that loads the states of one built with `old`."""
    optimizer, scheduler = old
    for _ in range(DONE):
        optimizer.step()
        scheduler.step()
    loaded = SimpleNamespace(optimizer=new[0], lr_scheduler=new[1], is_deepspeed_enabled=False, **more)
    built = AsBuilt.of(*new)
    new[0].load_state_dict(optimizer.state_dict())
    new[1].load_state_dict(scheduler.state_dict())
    assert new[0].param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]  # the checkpoint has overwritten it
    apply_changes(loaded, built, changes)
    return new[0].param_groups, new[1]


def test_rate_decay_and_betas_of_the_next_step():
    changes = {"training.learning_rate": (1e-3, 1e-4), "training.weight_decay": (0, 0.5), "training.adam_beta2": (0, 0)}
    groups, scheduler = resume(build(1e-4, 0.5, 0.8), build(1e-3, 0.1, 0.95), changes)
    assert [group["lr"] for group in groups] == pytest.approx([1e-4 * (STEPS - DONE) / STEPS] * 2)
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]  # the group without decay stays so
    assert [group["betas"] for group in groups] == [(0.9, 0.8)] * 2
    assert scheduler.get_last_lr() == pytest.approx([6e-5, 6e-5])
    scheduler.step()
    assert groups[0]["lr"] == pytest.approx(1e-4 * (STEPS - DONE - 1) / STEPS)


def test_another_schedule_counts_from_the_next_step_at_the_old_rate():
    changes = {"training.lr_scheduler_type": ("linear", "constant")}
    new, old = build(1e-3, 0.1, 0.95, "constant"), build(1e-3, 0.1, 0.95)
    groups, _ = resume(new, old, changes)
    assert groups[0]["lr"] == pytest.approx(1e-3)  # the checkpoint's was 6e-4


def test_what_did_not_change_stays_the_checkpoint_s():
    groups, _ = resume(build(1e-4, 0.5, 0.8), build(1e-3, 0.1, 0.95), {"training.weight_decay": (0.1, 0.5)})
    assert groups[0]["lr"] == pytest.approx(6e-4) and groups[0]["betas"] == (0.9, 0.95)


def test_a_schedule_with_a_state_is_scaled():
    def with_plateau(rate):
        optimizer, _ = build(rate, 0.1, 0.95)
        return optimizer, ReduceLROnPlateau(optimizer, factor=0.5, patience=0)

    optimizer, scheduler = with_plateau(1e-3)
    optimizer.step()
    for loss in (1.0, 2.0):
        scheduler.step(loss)
    assert optimizer.param_groups[0]["lr"] == 5e-4
    new = with_plateau(1e-4)
    built = AsBuilt.of(*new)
    new[0].load_state_dict(optimizer.state_dict())
    new[1].load_state_dict(scheduler.state_dict())
    trainer = SimpleNamespace(optimizer=new[0], lr_scheduler=new[1], is_deepspeed_enabled=False)
    apply_changes(trainer, built, {"training.learning_rate": (1e-3, 1e-4)})
    assert new[0].param_groups[0]["lr"] == pytest.approx(5e-5)


def test_zero_clips_by_the_new_norm():
    engine = SimpleNamespace(optimizer=SimpleNamespace(clip_grad=1.0))  # as loading a ZeRO checkpoint leaves it
    optimizer, scheduler = build(1e-3, 0.1, 0.95)
    trainer = SimpleNamespace(
        optimizer=optimizer, lr_scheduler=scheduler, is_deepspeed_enabled=True, deepspeed=engine,
        args=SimpleNamespace(max_grad_norm=0.25),
    )  # fmt: skip
    apply_changes(trainer, AsBuilt.of(optimizer, scheduler), {"training.max_grad_norm": (1.0, 0.25)})
    assert engine.optimizer.clip_grad == 0.25
