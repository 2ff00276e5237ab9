"""With `perf.compile`: what the first step compiled, and every compilation after the second."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from training.callbacks.contract import StatefulCallback
from training.compiling.counts import (
    Compilations,
    count_cache_hits,
    count_compilations,
    find_last_reason,
    list_graph_breaks,
)
from training.run_dir import RunDir

logger = logging.getLogger("redline.train")

SETTLED = 2
"""Steps of a launch in which compiling is expected."""


@dataclass(eq=False)
class CompileWatch(StatefulCallback):
    """Logs compilations on each rank; rank 0 also writes an event for each one after the second step.

    Metrics recorded: none.
    """

    run_dir: RunDir
    writes: bool
    """Whether this rank writes events."""
    _steps: int = 0
    _before: Compilations | None = None

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Count from here: a trial of the micro-batch may have compiled."""
        self._steps, self._before = 0, count_compilations()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say what this step has compiled."""
        assert self._before is not None
        now, before = count_compilations(), self._before
        self._steps, self._before = self._steps + 1, now
        if self._steps == 1:
            self._describe_first(before, now)
        elif self._steps > SETTLED and now.frames > before.frames:
            self._warn(state.global_step, now.frames - before.frames)

    def _describe_first(self, before: Compilations, now: Compilations) -> None:
        hits, misses = count_cache_hits()
        new = now.graphs - before.graphs
        logger.info("compile: %d graph%s, %d of %d in the cache", new, "s" * (new != 1), hits, hits + misses)
        if now.graph_breaks > before.graph_breaks:
            reasons = list_graph_breaks()
            more = f" (and {len(reasons) - 1} other reasons)" * (len(reasons) > 1)
            logger.warning("compile: what is compiled is cut in %d places: %s%s",
                           now.graph_breaks - before.graph_breaks, reasons[0], more)  # fmt: skip

    def _warn(self, step: int, number: int) -> None:
        reason = find_last_reason() or "dynamo gives no reason"
        message = f"compiled again {number} time{'s' * (number != 1)} in step {step}: {reason}"
        logger.warning("compile: %s", message)
        if self.writes:
            self.run_dir.append_event("recompile", step, message, reason=reason, compilations=number)
