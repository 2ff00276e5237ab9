"""With `torch_compile` the first step is minutes of compiling: shown as such, on the first rank."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from data_prep.progress import progress
from training.callbacks.contract import StatefulCallback


@dataclass(eq=False)
class FirstStep(StatefulCallback):
    """Shows the first step of a launch as a long one.

    Metrics recorded: none.
    """

    _shown: ExitStack = field(default_factory=ExitStack)
    _begun: bool = False

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Show the first step as under way."""
        if not self._begun:
            self._shown.enter_context(progress("compiling (the first step)"))
        self._begun = True

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """The first step is over."""
        self._shown.close()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is shown any more."""
        self._shown.close()
