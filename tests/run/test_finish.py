"""The check of what a run leaves in final/: one tensor that is not the trained one is found."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data_prep.errors import UserError
from training.run.finish import check_same_weights


def trainer_of(model: torch.nn.Module) -> Any:
    accelerator = SimpleNamespace(unwrap_model=lambda wrapped: wrapped)
    return SimpleNamespace(accelerator=accelerator, model=model, run_dir=SimpleNamespace(final="runs/x/final"))


@pytest.fixture
def trained() -> torch.nn.Sequential:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    model[0].requires_grad_(False)
    return model


def test_equal_weights_pass_in_any_type(trained: torch.nn.Sequential) -> None:
    check_same_weights(copy.deepcopy(trained), trainer_of(trained))
    check_same_weights(copy.deepcopy(trained).bfloat16(), trainer_of(trained))
    check_same_weights(copy.deepcopy(trained).bfloat16().float(), trainer_of(copy.deepcopy(trained).bfloat16()))


def test_what_was_not_trained_is_not_compared(trained: torch.nn.Sequential) -> None:
    loaded = copy.deepcopy(trained)
    loaded.get_parameter("0.weight").data.zero_()
    check_same_weights(loaded, trainer_of(trained))


def test_one_changed_or_lost_tensor_is_named(trained: torch.nn.Sequential) -> None:
    changed = copy.deepcopy(trained)
    changed.get_parameter("1.bias").data[2] += 1e-6
    with pytest.raises(UserError, match=r"runs/x/final: reloaded, 1\.bias differs from the trained one"):
        check_same_weights(changed, trainer_of(trained))
    lost = copy.deepcopy(trained)
    lost[1].register_parameter("bias", None)
    with pytest.raises(UserError, match=r"1\.bias is missing"):
        check_same_weights(lost, trainer_of(trained))
