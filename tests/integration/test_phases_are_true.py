"""A delay of known length turns up in its phase and in no other, under every launch, and the phases are the wall time.

What a machine adds to a step varies more than 2 ms, so nothing is taken off: the instants of each sleep are held
against the instants at which the timer changed phases, and the metrics of a step against the sums of these phases.
One phase is missing: `h2d`, which a CPU does not have (the batch is where it is needed).
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration import injected_delays
from tests.integration.injected_delays import ONE_RANK, PERIOD, PHASES, PLACES, SAVE_EVERY
from training.metrics import names

PERIODS = 2
STEPS = PERIODS * PERIOD + 1  # the last one begins with what follows the last period
QUIET = (0, 1, 5, 8, 9)  # of a period: nobody sleeps while it computes
COMPUTING = (names.DATA_WAIT, names.FORWARD, names.BACKWARD, names.OPTIMIZER)
FLAGS = [
    "--max_steps", str(STEPS), "--eval_strategy", "steps", "--eval_steps", str(SAVE_EVERY),
    "--save_strategy", "steps", "--save_steps", str(SAVE_EVERY), "perf.empty_cache_every=1", "monitor.plot_every=1",
    "perf.num_threads=1", "checkpoint.verify_final=false",
]  # fmt: skip
RUNS = {
    "python": {"plain": [], "zero2": ["--deepspeed", "zero2_bf16"]},
    "torchrun": {"ddp": []},
    "deepspeed": {"zero2": ["--deepspeed", "zero2_bf16"], "zero3": ["--deepspeed", "zero3_bf16"]},
    "accelerate": {"ddp": []},
}


@dataclass(frozen=True)
class Sleep:
    rank: int
    step: int
    place: str
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def tolerance(self) -> float:
        return max(0.05 * self.seconds, 2e-3)


class Rank:
    """What one rank's timer saw: by step, the phases from when to when."""

    def __init__(self, path: Path, rank: int) -> None:
        left = json.loads((path / f"injected-{rank}.json").read_text())
        self.sleeps = [Sleep(rank, **sleep) for sleep in left["sleeps"] if sleep["step"] <= STEPS]
        self.spans = {step: _spans(**entry) for step, entry in enumerate(left["steps"], start=1)}

    def seconds(self, step: int) -> Counter[str]:
        return _sum((phase, end - start) for phase, start, end in self.spans[step])

    def during(self, sleep: Sleep) -> Counter[str]:
        """Seconds by phase of its step, on this rank, while somebody slept."""
        return _sum((p, min(end, sleep.end) - max(start, sleep.start)) for p, start, end in self.spans[sleep.step])


def _spans(start, changes):
    starts = [start, *(mark for _, mark in changes)]
    return [(phase, start, end) for start, (phase, end) in zip(starts, changes, strict=False)]


def _sum(parts) -> Counter[str]:
    total: Any = Counter()  # of floats
    for phase, seconds in parts:
        total[phase] += max(seconds, 0.0)
    return total


@pytest.mark.launch
@pytest.mark.timeout(600)
@pytest.mark.parametrize("launcher", list(RUNS))
def test_injected_delays_are_found_in_their_phase_alone(launch_all, tmp_path, launcher):
    runs = {name: [*FLAGS, *flags] for name, flags in RUNS[launcher].items()}
    finished = launch_all(launcher, tmp_path, runs, script=Path(injected_delays.__file__))
    for name, run in finished.items():
        ranks = [Rank(run.path, rank) for rank in range(1 if launcher == "python" else 2)]
        check_every_place_slept(ranks)
        assert not (untrue := [line for rank in ranks for line in find_untrue(rank)]), (name, untrue)
        check_metrics(run, ranks)
        check_wall_time(run, ranks[0])
        if len(ranks) > 1:
            check_waiting(ranks, "straggler")
            check_waiting(ranks, "sink")
            if name == "ddp":  # others come to what rank 0 is needed for only after work of their own
                check_waiting(ranks, "plot")
            check_straggler(run)


def check_every_place_slept(ranks):
    for place in PLACES.values():
        slept = [len({sleep.step for sleep in rank.sleeps if sleep.place == place}) for rank in ranks]
        if place == "straggler":
            assert slept == [0, PERIODS][: len(ranks)]
        elif place in ONE_RANK:
            assert slept == [PERIODS, 0][: len(ranks)]
        else:
            assert slept == [PERIODS] * len(ranks), place


def find_untrue(rank: Rank) -> list[str]:
    untrue = []
    for sleep in rank.sleeps:
        injected = {PHASES.get(sleep.place, sleep.place): sleep.seconds}
        during = rank.during(sleep)
        for phase in names.PHASES:
            off = during[phase] - injected.get(phase, 0.0)
            if abs(off) > sleep.tolerance:
                untrue.append(f"rank {sleep.rank}, step {sleep.step}, {sleep.place}: {phase} {1e3 * off:+.1f} ms")
    return untrue


def check_metrics(run, ranks):
    """What is written is the mean of these phases over the ranks, and they are all that is written."""
    records = [record for record in run.metrics() if names.PERF_STEP_MS in record]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    for record in records:
        found = sum((rank.seconds(record["step"]) for rank in ranks), Counter())
        for phase in names.PHASES:
            assert record.get(names.phase_key(phase), 0.0) == pytest.approx(1e3 * found[phase] / len(ranks), abs=1e-3)
        assert record[names.PERF_STEP_MS] == pytest.approx(1e3 * found.total() / len(ranks), abs=1e-3)


def check_wall_time(run, rank):
    """The steps' clock against the run's: the time between two records is the time of the steps between them.

    rank: 0. A record is written in the next step, by the end of its logging (and evaluation, which these have not).
    """
    times = {record["step"]: record["time_s"] for record in run.metrics() if names.PERF_STEP_MS in record}
    late = {step: rank.seconds(step + 1)[names.LOGGING] for step in range(1, STEPS) if step % SAVE_EVERY}
    first, last = (min(part, key=late.__getitem__) for part in (list(late)[:5], list(late)[-5:]))
    clock = sum(rank.seconds(step).total() for step in range(first + 1, last + 1))
    wall, tolerance = times[last] - times[first], 0.01 * clock
    assert clock - late[first] - tolerance < wall < clock + late[last] + tolerance


def check_waiting(ranks, place):
    """While one rank sleeps the other waits for it, once it has done its own work: the best of the periods."""
    missing = []
    for sleep in ranks[0].sleeps + ranks[1].sleeps:
        if sleep.place == place:
            other = ranks[1 - sleep.rank]
            work = max(sum(other.seconds(step)[phase] for phase in COMPUTING) for step in find_quiet_steps())
            missing.append(sleep.seconds - other.during(sleep)[names.COMM_EXPOSED] - work - sleep.tolerance)
    assert min(missing) < 0, (place, missing)


def find_quiet_steps():
    return [step for step in range(1, STEPS + 1) if step % PERIOD in QUIET]


def check_straggler(run):
    """The rank that is waited for is named, unless the machine itself holds up the other one for longer."""
    named = [
        record[names.PERF_SLOWEST_RANK]
        for record in run.metrics()
        if names.PERF_STEP_MS in record and PLACES.get(record["step"] % PERIOD) == "straggler"
    ]
    assert len(named) == PERIODS and 1 in named
