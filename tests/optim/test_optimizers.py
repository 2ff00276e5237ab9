"""Every optimizer is one object that all who ask about optimizers find; states and arguments against real ones."""

import inspect
from dataclasses import dataclass

import pytest
import torch
from transformers.training_args import OptimizerNames

from data_prep.errors import UserError
from data_prep.recipe import Layer
from training.benchmark.advise.levers import Baseline, list_variants
from training.config import load_config
from training.config.deepspeed_blocks import check_blocks, fill_in
from training.memory.run_plan import Planner
from training.metrics.roofline import OptimizerWork, count_optimizer_work
from training.models.planned import build_planned_model
from training.optim import optimizers
from training.optim.choose import find_optimizer
from training.optim.facts import Optimizer, Package, StepMemory
from training.optim.optimizers import OPTIMIZERS

CLASSES = {
    "adamw_torch": torch.optim.AdamW,
    "adafactor": torch.optim.Adafactor,
    "adamax": torch.optim.Adamax,
    "adagrad": torch.optim.Adagrad,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}


def test_every_value_of_transformers_has_one_object_and_no_other():
    names = [optimizer.name for optimizer in OPTIMIZERS if optimizer.in_recipe]
    assert sorted(names) == sorted(name.value for name in OptimizerNames)
    assert len({optimizer.name for optimizer in OPTIMIZERS}) == len(OPTIMIZERS)


def test_deepspeed_has_the_types_that_are_said_to_be_its_own():
    config = pytest.importorskip("deepspeed.runtime.config")
    assert set(config.DEEPSPEED_OPTIMIZERS) <= {one.name for one in OPTIMIZERS if one.in_json == "deepspeed"} | {
        name for name in config.DEEPSPEED_OPTIMIZERS if "onebit" in name or "zeroone" in name
    }
    of_torch = {name.lower() for name, kind in vars(torch.optim).items() if inspect.isclass(kind)}
    assert {one.name for one in OPTIMIZERS if one.in_json == "torch"} <= of_torch


CASES = [(name, ()) for name in CLASSES] + [
    ("sgd", ("momentum",)),
    ("rmsprop", ("momentum",)),
    ("rmsprop", ("momentum", "centered")),
]


@pytest.mark.parametrize(("name", "extra"), CASES)
def test_states_are_those_that_torch_makes(name, extra):
    """For a matrix of 64 x 32; beyond whole tensors of it there are counters and factors, below 100 numbers."""
    optimizer = find_optimizer(name)
    assert set(extra) <= set(optimizer.adds_state) and optimizer.states is not None
    weight = torch.nn.Parameter(torch.ones(64, 32))
    real = CLASSES[name]([weight], lr=0.1, **{key: 0.9 if key == "momentum" else True for key in extra})
    weight.grad = torch.ones(64, 32)
    real.step()
    numbers = sum(value.numel() for value in real.state[weight].values() if torch.is_tensor(value))
    assert numbers // weight.numel() == optimizer.states + len(extra)
    assert numbers % weight.numel() < 100


@dataclass(frozen=True)
class MadeUp(Optimizer):
    """Multiplies each weight matrix by itself once, and holds a copy of all for a moment."""

    def find_temporaries(self, largest, trained, *, on_gpu):
        return StepMemory(4 * trained, "a copy")

    def count_flops(self, shapes):
        return sum(2 * rows * columns * rows for rows, columns in shapes)

    def count_moved_bytes(self, weights, states):
        return weights


MADE_UP = MadeUp(
    "made_up", states=5, arguments=("depth",), in_json="deepspeed", own_rates=("deep_lr",), advised_on=("cpu",)
)


@pytest.fixture
def made_up(monkeypatch):
    monkeypatch.setattr(optimizers, "OPTIMIZERS", (MADE_UP, *OPTIMIZERS))


def test_a_new_optimizer_is_advised_and_counted_without_another_line(made_up):
    variants, _ = list_variants(Baseline(load_config(["--config", "debug"]), 1, "cpu", 1), ["optimizer"])
    assert [one.label for one in variants] == ["made_up", "adamw_torch", "adafactor"]
    assert [bool(one.changes_training) for one in variants] == [True, False, True]

    weight = torch.nn.Parameter(torch.zeros(3, 5))
    step = count_optimizer_work(torch.optim.SGD([weight]), find_optimizer("made_up"), torch.device("cpu"))
    assert step == OptimizerWork(60, 2 * 3 * 5 * 3)


def test_a_new_optimizer_is_planned_and_checked_without_another_line(made_up):
    loaded = load_config(["--config", "debug", "model.kind=minigpt"])
    loaded.config.training["optim"] = "made_up"
    planner = Planner(loaded, lambda *given: build_planned_model(loaded.config, *given), 1, on_gpu=False)
    sizes = {part.name: part.bytes for part in planner.states}
    assert sizes["optimizer states"] == 4 * 5 * planner.counts.trained
    assert sizes["optimizer temporaries"] == 4 * planner.counts.trained


def test_the_json_of_a_new_optimizer_is_filled_in_and_not_taken_for_torchs(made_up):
    known = {"optimizer": {"made_up": ["lr", "deep_lr"]}, "scheduler": {}}
    filled = fill_in({"optimizer": {"type": "made_up"}}, {"learning_rate": 0.5}, known)["optimizer"]["params"]
    assert filled == {"deep_lr": 0.5}
    check_blocks(Layer({"optimizer": {"type": "made_up"}, "zero_optimization": {"stage": 1}}))
    with pytest.raises(UserError, match="ASGD is an optimizer of PyTorch, which ZeRO does not take"):
        check_blocks(Layer({"optimizer": {"type": "ASGD"}, "zero_optimization": {"stage": 1}}))


def test_the_first_missing_package_is_named():
    both = Optimizer("x", packages=(Package("json", "json"), Package("not_there", "not-there>=2")))
    assert both.find_missing() == Package("not_there", "not-there>=2")
    assert Optimizer("x", packages=(Package("json", "json"),)).find_missing() is None
