"""What every callback of this package is: a dataclass with documented fields, a list "Metrics recorded" in its
docstring, and a state that checkpoints keep.

A callback gets the trainer as its first field and uses of it what `StepRecorder` names. What it has to remember over a
resume, `state_dict` returns as JSON values and `load_state_dict` takes up again; a callback without memory inherits
both. States are kept by class name (`redline.json` or `progress.json` of a checkpoint).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import TrainerCallback


class StatefulCallback(TrainerCallback):
    """Base of the callbacks of this package."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback, as JSON values; empty: nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned when the checkpoint was written."""


def read_states(callbacks: Iterable[TrainerCallback]) -> dict[str, Any]:
    """The states of those that have one, by class name."""
    found = {type(one).__name__: one.state_dict() for one in callbacks if isinstance(one, StatefulCallback)}
    return {name: state for name, state in found.items() if state}


def load_states(callbacks: Iterable[TrainerCallback], states: Mapping[str, Any]) -> None:
    """Give each callback its state; those that a checkpoint does not know start afresh."""
    for one in callbacks:
        if isinstance(one, StatefulCallback) and type(one).__name__ in states:
            one.load_state_dict(states[type(one).__name__])
