"""Loss curves while training: at `monitor.plot_every` steps, at each checkpoint and at the end, drawn by rank 0.

All ranks wait while one draws, so after the first one, plots that are due by steps are drawn `MAX_SHARE` of the time at
most: one that comes too soon after another waits.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from training.callbacks.contract import StatefulCallback
from training.callbacks.step_recorder import StepRecorder
from training.metrics import names
from training.reporting.run_reader import MetricsLog
from training.run_dir import RunDir

MAX_SHARE = 0.0005


@dataclass(eq=False)
class Plotting(StatefulCallback):
    """Draws at the beginning of the next step, or when training ends, when the record of the last step is on disk.

    Metrics recorded: none; its time is in the phase `logging`.
    """

    trainer: StepRecorder
    run_dir: RunDir
    every: int
    """Optimizer steps between two plots."""
    unigram_entropy_nats: float | None
    """Drawn as a line in the loss plot; None: not known."""
    _metrics: MetricsLog | None = None
    _due: bool = False
    _saved_step: int | None = None
    _not_before: float = 0.0
    """On the monotonic clock."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A plot is due after every so many steps."""
        self._due = self._due or state.global_step % self.every == 0

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A plot of the checkpoint is due."""
        self._saved_step = state.global_step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw what is due: the record of the last step is on disk now."""
        if (self._due and time.monotonic() >= self._not_before) or self._saved_step is not None:
            self._draw()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """No step comes after the last one, whose checkpoint has its curves all the same; the report draws the rest."""
        if self._saved_step is not None:
            self._draw()

    def _draw(self) -> None:
        with self.trainer.span(names.LOGGING):
            # Here, because matplotlib takes half a second to import: the first plot pays, not the first step.
            import training.reporting.plots  # noqa: F401

            started = time.monotonic()
            self._plot()
            ended = time.monotonic()
        self._due, self._saved_step = False, None
        self._not_before = ended + (ended - started) / MAX_SHARE

    def _plot(self) -> None:
        from training.reporting.plots import LOSS_KEYS, plot_losses

        if self._metrics is None:
            self._metrics = MetricsLog(self.run_dir.metrics, LOSS_KEYS)  # from now on it reads only what is new
        plot_losses(
            self.run_dir.path,
            checkpoint_step=self._saved_step,
            unigram_entropy_nats=self.unigram_entropy_nats,
            metrics=self._metrics,
        )
