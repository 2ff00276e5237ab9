"""Every optimizer that transformers names is built and takes a step here, or is refused before torch is imported."""

import importlib.util
from typing import Any, cast

import pytest
import torch
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from data_prep.errors import UserError
from training.config import load_config
from training.optim.choose import find_optimizer

NAMES = [name.value for name in OptimizerNames]


def load(*flags):
    return load_config(["--config", "debug", *flags])


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_is_built_or_refused(name, tmp_path):
    targets = ["training.optim_target_modules=all-linear"] if name.startswith(("galore", "apollo")) else []
    named = find_optimizer(name)
    if named.refusal:
        with pytest.raises(UserError, match=f"training.optim = {name}: is not available: {named.refusal}"):
            load("--optim", name, *targets)
        return
    if package := named.find_missing():
        with pytest.raises(UserError, match=f"that is not installed: pip install '{package.requirement}'"):
            load("--optim", name, *targets)
        return
    arguments = load("--optim", name, *targets).config.training
    model = torch.nn.Linear(64, 64)
    kept = {key: arguments[key] for key in ("optim", "learning_rate", "optim_target_modules") if key in arguments}
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **kept)
    kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, cast(Any, torch.nn.Sequential(model)))
    optimizer = kind(kwargs.pop("params", None) or model.parameters(), **kwargs)
    before = model.weight.detach().clone()
    model(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    assert not model.weight.equal(before)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--optim_args", "momentum=0.9"],
            "training.optim_args = momentum=0.9: adamw_torch_fused has no parameter 'momentum'",
        ),
        (["--optim", "sgd", "--optim_args", "momentun=0.9"], "did you mean momentum"),
        (["--optim", "sgd", "--optim_args", "momentum"], "is not KEY=VALUE"),
        (["--optim", "sgd", "--optim_args", "weight_decay=0.1"], "weight_decay has no effect here"),
        (["--optim", "rmsprop_bnb", "--optim_args", "momentum=0.9"], "rmsprop_bnb has no parameter 'momentum'"),
        (["training.optim_target_modules=all-linear"], "applies only to GaLore and APOLLO, not to adamw_torch_fused"),
    ],
)
def test_what_an_optimizer_would_pass_over(flags, message):
    with pytest.raises(UserError) as error:
        load(*flags)
    assert message in str(error.value) and "(command line)" not in str(error.value)


def test_a_missing_package_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(UserError, match="command line: training.optim = adamw_8bit: .*pip install 'bitsandbytes'"):
        load("--optim", "adamw_8bit")
    with pytest.raises(UserError, match="needs training.optim_target_modules|needs a package"):
        load("--optim", "galore_adamw")


def test_sgd_takes_its_arguments():
    assert load("--optim", "sgd", "--optim_args", "momentum=0.9, nesterov=true").config.argument("optim") == "sgd"
