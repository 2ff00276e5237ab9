"""From the seconds and the work of steps to the `perf/` metrics.

A `Meter` is told of each micro-batch (`add`), closes a step (`end_step`), and at a logging step gathers what is known
since the last one from all ranks (`window`): tokens/s, MFU and phase times are ratios of sums over one and the same
set of steps, never a count of now over a clock of then. So they are right with accumulation, with evaluation in
between (its own phase) and in the first window after a resume. The same gather says how far the ranks are apart.

The first `WARMUP_STEPS` steps of a launch (allocation, autotuning, page cache) are logged but left out of the totals.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from training.metrics import names
from training.metrics.calibration import Calibrator
from training.metrics.document_lengths import BatchShape
from training.metrics.flops import ModelFlops, StepFlops
from training.metrics.peaks import Peak
from training.metrics.phase_timer import PhaseTimer, Step

WARMUP_STEPS = 2

GatherOverRanks = Callable[[list[float]], list[list[float]]]


@dataclass
class Work:
    """What one rank did in a step. FLOPs are whole numbers, forward and backward."""

    steps: int = 0
    tokens: int = 0
    useful_tokens: int = 0
    allocated_bytes: int = 0
    """Memory in use at the end of those steps at which it was read, summed: for the mean."""
    memory_readings: int = 0
    model_flops: int = 0
    palm_flops: int = 0
    hardware_flops: int = 0
    forward_flops: int = 0
    """Of `hardware_flops`, the forward pass."""
    micro_batches: int = 0

    def add_flops(self, flops: StepFlops) -> None:
        """Of one micro-batch."""
        self.model_flops += flops.model
        self.palm_flops += flops.palm
        self.hardware_flops += flops.hardware
        self.forward_flops += flops.forward

    def __iadd__(self, other: Work) -> Work:
        mine, others = vars(self), vars(other)
        for name, value in others.items():
            mine[name] += value
        return self


@dataclass(frozen=True)
class StepWork:
    """What one rank did in one step, on average."""

    tokens: float
    micro_batches: float
    hardware_flops: float
    forward_flops: float


@dataclass(frozen=True)
class Forward:
    """One forward pass, counted once its step is over: where its documents are may not be on the host before."""

    shape: BatchShape
    flops: ModelFlops | None
    with_backward: bool

    def count(self) -> Work:
        """A pass without gradients, as of a reference model, costs FLOPs and trains on no token."""
        lengths, rows = self.shape.document_lengths(), self.shape.rows
        tokens = rows * self.shape.seq_len
        work = Work(tokens=tokens, useful_tokens=sum(lengths), micro_batches=1) if self.with_backward else Work()
        if self.flops is not None and self.with_backward:
            flops = self.flops.count(lengths, tokens, sum(lengths), rows=rows)
            work.add_flops(flops)
        elif self.flops is not None:
            work.add_flops(self.flops.count_forward(lengths, tokens, rows=rows))
        return work


class Totals:
    """Sums over steps: work and seconds by phase, of this rank."""

    def __init__(self) -> None:
        self.work = Work()
        self.seconds: dict[str, float] = {phase: 0.0 for phase in names.PHASES}

    def add(self, step: Step[Work]) -> None:
        """Add one step."""
        self.work += step.work
        for phase, seconds in step.seconds.items():
            self.seconds[phase] += seconds

    def as_list(self) -> list[float]:
        """All sums in a fixed order, for a gather."""
        return [float(value) for value in vars(self.work).values()] + list(self.seconds.values())

    @classmethod
    def from_list(cls, values: Sequence[float]) -> Totals:
        """The inverse of `as_list`."""
        totals = cls()
        num_fields = len(fields(Work))
        totals.work = Work(*(int(value) for value in values[:num_fields]))
        totals.seconds = dict(zip(names.PHASES, values[num_fields:], strict=True))
        return totals

    def __iadd__(self, other: Totals) -> Totals:
        self.work += other.work
        for phase, seconds in other.seconds.items():
            self.seconds[phase] += seconds
        return self

    @property
    def total_seconds(self) -> float:
        """Of all phases."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Rates:
    """What throughput is compared with: `peak` None leaves MFU out (FLOP/s stay); `ceiling` and `calibrator` are kept
    for the summary."""

    peak: Peak | None = None
    ceiling: Peak | None = None
    calibrator: Calibrator | None = None


class Meter:
    """Counts work against time on one rank and reports over all of them.

    `model_flops` None leaves the FLOPs out. `gather` gives the lists of floats of all ranks, by rank; `window`,
    `epoch`, `run_totals`, `run_work` and `count_trained_tokens` are collective.
    """

    def __init__(
        self,
        timer: PhaseTimer[Work],
        *,
        gather: GatherOverRanks = lambda values: [values],
        model_flops: ModelFlops | None = None,
        rates: Rates | None = None,
    ) -> None:
        self.timer = timer
        rates = rates or Rates()
        self.peak, self.ceiling, self.calibrator = rates.peak, rates.ceiling, rates.calibrator
        self._gather = gather
        self._flops = model_flops
        self._current = Work()
        self._forwards: list[Forward] = []
        self._forwards_of_steps: deque[list[Forward]] = deque()
        self._seen: set[str] = set()
        self._num_steps = 0
        self._window, self._epoch, self._run = Totals(), Totals(), Totals()
        self._useful_tokens = 0
        self.last_batch_flops = 0
        """Hardware FLOPs counted for the latest micro-batch."""

    def add(
        self, document_lengths: Sequence[int], *, rows: int, tokens: int, useful_tokens: int, loss_tokens: int
    ) -> None:
        """Count one micro-batch of the step under way: its rows hold `tokens` positions, padding included."""
        work = Work(tokens=tokens, useful_tokens=useful_tokens, micro_batches=1)
        if self._flops is not None:
            flops = self._flops.count(document_lengths, tokens, loss_tokens, rows=rows)
            work.add_flops(flops)
            self.last_batch_flops = flops.hardware
        self._current += work

    def add_forward(self, forward: Forward) -> None:
        """Count one forward pass of the step under way, where nobody counted its batch before (`add`)."""
        self._forwards.append(forward)

    def end_step(self, allocated_bytes: int | None = None) -> None:
        """Close the step; `allocated_bytes`: memory in use now, None where it was not read."""
        self._current.steps = 1
        if allocated_bytes is not None:
            self._current.allocated_bytes, self._current.memory_readings = allocated_bytes, 1
        self._end(self._current)
        self._current = Work()
        self._collect(wait=False)

    def close(self) -> None:
        """Training is over: what ran after the last step, its evaluation and checkpoint, is in the run's totals."""
        self._end(Work())
        self._collect(wait=True)

    def _end(self, work: Work) -> None:
        self.timer.end_step(work)
        self._forwards_of_steps.append(self._forwards)
        self._forwards = []

    def _collect(self, *, wait: bool) -> None:
        for step in self.timer.finished_steps(wait=wait):
            for forward in self._forwards_of_steps.popleft():
                step.work += forward.count()
            self._num_steps += step.work.steps
            self._useful_tokens += step.work.useful_tokens
            self._seen.update(step.seconds)
            self._window.add(step)
            self._epoch.add(step)
            if self._num_steps > WARMUP_STEPS or not step.work.steps:
                self._run.add(step)

    def window(self) -> dict[str, float]:
        """The `perf/` metrics of the steps since the last call, over all ranks; empty when none is known yet."""
        ranks, self._window = self._of_ranks(self._window), Totals()
        return self._as_metrics(ranks) | self._spread_over_ranks(ranks)

    def epoch(self) -> dict[str, float]:
        """The per-epoch keys (seconds, mean over ranks) and a fresh start for the next epoch."""
        self._collect(wait=True)
        ranks, self._epoch = self._of_ranks(self._epoch), Totals()
        totals = _sum(ranks)
        seconds = {phase: value / len(ranks) for phase, value in totals.seconds.items()}
        total, work = sum(seconds.values()), totals.work
        if not total:
            return {}
        loading = seconds[names.DATA_WAIT] + seconds[names.H2D]
        backward = seconds[names.BACKWARD] + seconds[names.COMM_EXPOSED]
        computing = seconds[names.FORWARD] + backward + seconds[names.OPTIMIZER]
        return {
            names.PERF_EPOCH_FORWARD_TIME: seconds[names.FORWARD],
            names.PERF_EPOCH_BACKWARD_TIME: backward,
            names.PERF_EPOCH_OPTIMIZER_TIME: seconds[names.OPTIMIZER],
            names.PERF_EPOCH_DATA_LOADING_TIME: loading,
            names.PERF_EPOCH_AVG_MEMORY_GB: (
                work.allocated_bytes / work.memory_readings / 1e9 if work.memory_readings else math.nan
            ),
            names.PERF_EPOCH_DATA_LOADING_RATIO: loading / total,
            names.PERF_EPOCH_COMPUTE_RATIO: computing / total,
        }

    def run_totals(self) -> dict[str, float]:
        """The same metrics over the whole launch without its warm-up steps; empty when it was no longer."""
        self._collect(wait=True)
        return self._as_metrics(self._of_ranks(self._run))

    def run_work(self) -> StepWork | None:
        """Work of a step, mean over the steps of `run_totals` and over ranks; None when no step was finished."""
        self._collect(wait=True)
        work = _sum(self._of_ranks(self._run)).work
        if not work.steps:
            return None
        return StepWork(**{item.name: getattr(work, item.name) / work.steps for item in fields(StepWork)})

    def count_trained_tokens(self, *, wait: bool = False) -> int:
        """Tokens without padding of all steps of this launch, over all ranks; wait: on a GPU, those still under way."""
        self._collect(wait=wait)
        return sum(int(rank[0]) for rank in self._gather([float(self._useful_tokens)]))

    def _of_ranks(self, totals: Totals) -> list[Totals]:
        return [Totals.from_list(values) for values in self._gather(totals.as_list())]

    def _spread_over_ranks(self, ranks: list[Totals]) -> dict[str, float]:
        """How far several ranks are apart in each phase, and who has the most work of its own. The ranks of a step all
        take the same time: a slow one shows in the others' `comm_exposed`."""
        if len(ranks) == 1 or not all(rank.work.steps for rank in ranks):  # on CUDA a rank may know of none yet
            return {}
        found: dict[str, float] = {}
        for phase in names.PHASES:
            values = [1e3 * rank.seconds[phase] / rank.work.steps for rank in ranks]
            if phase in self._seen:
                found |= {
                    names.spread_key(phase, "min"): min(values),
                    names.spread_key(phase, "median"): statistics.median(values),
                    names.spread_key(phase, "max"): max(values),
                }
        own = [sum(rank.seconds[phase] for phase in names.OWN_WORK) for rank in ranks]
        found[names.PERF_SLOWEST_RANK] = own.index(max(own))
        if median := statistics.median(own):
            found[names.PERF_SLOWEST_RANK_BEHIND_PCT] = 100.0 * (max(own) / median - 1.0)
        return found

    def _as_metrics(self, ranks: list[Totals]) -> dict[str, float]:
        totals = _sum(ranks)
        work, seconds = totals.work, totals.total_seconds
        if not work.steps or not seconds:
            return {}
        device_seconds = seconds  # summed over ranks already
        wall_seconds = seconds / len(ranks)
        metrics = {
            names.PERF_STEP_MS: 1e3 * seconds / work.steps,
            **{names.phase_key(p): 1e3 * s / work.steps for p, s in totals.seconds.items() if p in self._seen},
        }
        if work.tokens:
            metrics[names.PERF_TOKENS_PER_SECOND] = work.useful_tokens / wall_seconds
            metrics[names.PERF_TOKENS_PER_SECOND_PER_DEVICE] = work.useful_tokens / device_seconds
            metrics[names.PERF_USEFUL_TOKENS_PCT] = 100.0 * work.useful_tokens / work.tokens
        if work.model_flops:
            metrics[names.PERF_MODEL_TFLOPS_PER_DEVICE] = work.model_flops / device_seconds / 1e12
            if self.peak is not None:
                possible = device_seconds * self.peak.tflops * 1e12
                metrics[names.PERF_MFU_PCT] = 100.0 * work.model_flops / possible
                metrics[names.PERF_MFU_PALM_PCT] = 100.0 * work.palm_flops / possible
                metrics[names.PERF_HFU_PCT] = 100.0 * work.hardware_flops / possible
        return metrics


def _sum(ranks: list[Totals]) -> Totals:
    total = Totals()
    for rank in ranks:
        total += rank
    return total
