"""What a callback may ask of the trainer: name the phase its time goes to, and add to the step's record."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol


class StepRecorder(Protocol):
    def span(self, phase: str) -> AbstractContextManager[None]: ...
    def add_to_record(self, values: dict[str, float]) -> None: ...
    def annotate_spans(self, annotate: Callable[[str], AbstractContextManager[Any]] | None) -> None: ...
