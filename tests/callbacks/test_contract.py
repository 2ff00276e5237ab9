"""The contract of `training/callbacks/contract.py`, held by every callback of the package and by checkpoints."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import dataclass, is_dataclass
from typing import Any

import pytest
from transformers import TrainerCallback

from training import callbacks
from training.callbacks.contract import StatefulCallback, load_states, read_states


def find_callbacks() -> list[type[TrainerCallback]]:
    names = [f"{callbacks.__name__}.{one.name}" for one in pkgutil.iter_modules(callbacks.__path__)]
    members = [vars(importlib.import_module(name)).values() for name in names]
    classes = {one for values in members for one in values if inspect.isclass(one) and one.__module__ in names}
    return sorted((one for one in classes - {StatefulCallback} if issubclass(one, TrainerCallback)), key=str)


@pytest.mark.parametrize("callback", find_callbacks(), ids=lambda one: one.__name__)
def test_every_callback_keeps_the_contract(callback):
    assert issubclass(callback, StatefulCallback) and is_dataclass(callback)
    assert "Metrics recorded" in (callback.__doc__ or "")


def test_all_callbacks_are_found():
    assert {one.__name__ for one in find_callbacks()} >= {"CacheClearing", "GpuMonitor", "Plotting", "RunEvents"}


@dataclass
class Counts(StatefulCallback):
    """A callback with a memory.

    Metrics recorded: none.
    """

    steps: int = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Any) -> None:
        self.steps = state["steps"]


@dataclass
class Forgets(StatefulCallback):
    """A callback without one.

    Metrics recorded: none.
    """


def test_states_go_by_class_name_and_a_new_callback_starts_afresh():
    states = read_states([Counts(3), Forgets(), TrainerCallback()])
    assert states == {"Counts": {"steps": 3}}
    later = [Forgets(), Counts()]
    load_states(later, states)
    assert later[1] == Counts(3)
    load_states(later, {})
    assert later[1] == Counts(3)


def test_two_callbacks_of_one_class_keep_a_state_each():
    first, second = Counts(), Counts()
    first.steps, second.steps = 3, 5
    restored = [Counts(), Forgets(), Counts(), Counts()]
    load_states(restored, read_states([first, second]))
    assert [one.steps for one in restored if isinstance(one, Counts)] == [3, 5, 0]
