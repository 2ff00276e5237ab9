"""What every callback of this package is: a dataclass with documented fields, a list "Metrics recorded" in its
docstring, and a state that checkpoints keep.

A callback gets the trainer as its first field and uses of it what `StepRecorder` names. What it has to remember over a
resume, `state_dict` returns as JSON values and `load_state_dict` takes up again; a callback without memory inherits
both. States are kept by class name (`redline.json` or `progress.json` of a checkpoint), several of one class numbered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
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
    """The states of those that have one, by key (`_list_keys`)."""
    found = {key: one.state_dict() for key, one in _list_keys(callbacks)}
    return {key: state for key, state in found.items() if state}


def load_states(callbacks: Iterable[TrainerCallback], states: Mapping[str, Any]) -> None:
    """Give each callback its state; those that a checkpoint does not know start afresh."""
    for key, one in _list_keys(callbacks):
        if key in states:
            one.load_state_dict(states[key])


def _list_keys(callbacks: Iterable[TrainerCallback]) -> Iterator[tuple[str, StatefulCallback]]:
    """The class name of each callback with a state; of several of one class, the second is `NAME.1`, and so on."""
    seen: Counter[str] = Counter()
    for one in callbacks:
        if isinstance(one, StatefulCallback):
            name = type(one).__name__
            yield (f"{name}.{seen[name]}" if seen[name] else name), one
            seen[name] += 1
