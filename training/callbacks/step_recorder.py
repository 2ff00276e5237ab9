"""What a callback may ask of the trainer: name the phase its time goes to, and add to the step's record."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol


class StepRecorder(Protocol):
    """The part of the trainer that callbacks use."""

    def span(self, phase: str) -> AbstractContextManager[None]:
        """Time inside goes to this phase."""
        ...

    def add_to_record(self, values: dict[str, float]) -> None:
        """Put metrics into the record of the step under way."""
        ...

    def annotate_spans(self, annotate: Callable[[str], AbstractContextManager[Any]] | None) -> None:
        """Enter `annotate(phase)` with each span; None: no longer."""
        ...
