"""With `torch_compile` the first step is minutes of compiling: shown as such, on the first rank."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback

from data_prep.progress import progress


class FirstStep(TrainerCallback):
    """Shows the first step of a session as a long one."""

    def __init__(self) -> None:
        self._shown = ExitStack()
        self._begun = False

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        if not self._begun:
            self._shown.enter_context(progress("compiling (the first step)"))
        self._begun = True

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._shown.close()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self._shown.close()
