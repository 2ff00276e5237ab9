"""A signal to any rank, and all ranks save at the end of the same step, and end.

The ranks compare what was asked of them once an optimizer step, on the CPU and in a process group of its own: posted
before the optimizer's step and read behind it, so no device waits and most of the exchange is hidden. In an evaluation
they compare once a batch, and after a save, so that neither has to be done to its end, or twice, for a run that stops.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from training.callbacks.contract import StatefulCallback
from training.ranks import Agreement
from training.run_dir import RunDir
from training.stop_signals import SAVE_LEVEL, StopSignals

logger = logging.getLogger("redline.train")


@dataclass(eq=False)
class Stopping(StatefulCallback):
    """Has the Trainer save when a signal asks for it, and raises `Stopped` on all ranks after the save.

    Metrics recorded: none.
    """

    run_dir: RunDir
    signals: StopSignals
    agreement: Agreement
    writes: bool
    """Whether this rank writes events."""
    level: int = field(default=0, init=False)
    """What the ranks have agreed on and not done yet."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """From now on a signal waits for the end of the step; one that has come already ends the run."""
        self.signals.begin_training()
        self._exchange()
        self._end_if_asked()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to compare."""
        self._post()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Have the Trainer save if a rank was asked to; before the end of a run it evaluates no more."""
        self._read()
        if not self.level:
            return
        control.should_save = True
        if self.level > SAVE_LEVEL:
            control.should_evaluate = False
        reason = self.signals.describe(self.level)
        logger.info("%s: saving after step %d", reason, state.global_step)
        if self.writes:
            self.run_dir.append_event("signal", state.global_step, f"{reason}: saving after this step")

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the evaluation when the run stops."""
        self._read()
        self._post()
        self._end_if_asked()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The checkpoint is whole: the run ends here if it has to."""
        self._exchange()
        self._end_if_asked()
        self.level = 0

    def _end_if_asked(self) -> None:
        if self.level > SAVE_LEVEL:
            raise self.signals.stopped(self.level)

    def _exchange(self) -> None:
        self._post()
        self._read()

    def _post(self) -> None:
        self._read()
        self.agreement.post(self.signals.take_level())

    def _read(self) -> None:
        self.level = max(self.level, self.agreement.read())
