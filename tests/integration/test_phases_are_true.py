"""Sleeps of known length turn up in their phase and nowhere else, and the phases are the wall time."""

import statistics
import sys

import pytest

from tests.integration.conftest import LAUNCHERS, ROOT, run
from tests.integration.injected_delays import SLEEPS
from training.metrics import names

STEPS, ACCUMULATION = 10, 2


@pytest.mark.launch
@pytest.mark.parametrize("deepspeed", [False, True], ids=["plain", "deepspeed"])
def test_injected_sleeps_are_found(recipe, tmp_path, deepspeed):
    # one thread: two wait for each other at every operation, for as long as another process has a core
    flags = ["--max_steps", str(STEPS), "perf.num_threads=1"]
    flags += ["--deepspeed", str(ROOT / "ds_configs" / "zero2_bf16.json")] if deepspeed else []
    command = [sys.executable, str(ROOT / "tests/integration/injected_delays.py"), "--config", str(recipe)]
    finished = run([*command, "--output_dir", str(tmp_path / "run"), *flags], tmp_path / "run")
    steps = [record for record in finished.metrics() if names.PERF_STEP_MS in record]
    slept = finished.json("injected.json")["4"]
    assert slept["data_wait"] == pytest.approx(SLEEPS["data_wait"] * ACCUMULATION)
    assert slept["forward"] == pytest.approx(SLEEPS["forward"] * ACCUMULATION)
    injected_ms = {phase: 1e3 * seconds for phase, seconds in slept.items()} | {names.OTHER: 0.0}
    for phase, injected in injected_ms.items():
        # The least of each kind: what the machine adds to a step varies, what was injected does not. A sleep that was
        # counted elsewhere would leave `slow` below it; one that came from elsewhere would lift the difference.
        quick, slow = (min(step[names.phase_key(phase)] for step in steps if step["step"] % 2 == r) for r in (1, 0))
        assert slow >= injected, phase
        assert slow - quick <= (1.1 * injected or 40), phase
    for step in steps:
        phases = sum(value for key, value in step.items() if key in map(names.phase_key, names.PHASES))
        assert phases == pytest.approx(step[names.PERF_STEP_MS], rel=0.001)
    # The steps' own clock against the run's: the time between two records is the time of the steps between them.
    wall = 1e3 * (steps[-1]["time_s"] - steps[0]["time_s"])
    assert sum(step[names.PERF_STEP_MS] for step in steps[1:]) == pytest.approx(wall, rel=0.02)


@pytest.mark.launch
@pytest.mark.parametrize("deepspeed", [False, True], ids=["ddp", "zero2"])
def test_a_rank_that_waits_for_another_says_so(recipe, tmp_path, deepspeed):
    flags = ["--max_steps", str(STEPS)]
    flags += ["--deepspeed", str(ROOT / "ds_configs" / "zero2_bf16.json")] if deepspeed else []
    command = [*LAUNCHERS["torchrun"], str(ROOT / "tests/integration/injected_delays.py"), "--config", str(recipe)]
    finished = run([*command, "--output_dir", str(tmp_path / "run"), *flags], tmp_path / "run")
    steps = [record for record in finished.metrics() if names.PERF_STEP_MS in record]
    injected = 1e3 * SLEEPS["backward"] * ACCUMULATION
    slow = [step for step in steps if step["step"] % 2 == 0]

    def least(phase, which):
        return min(step[names.spread_key(phase, which)] for step in slow)

    assert statistics.mode(step[names.PERF_SLOWEST_RANK] for step in slow) == 1
    assert injected <= least(names.BACKWARD, "max") <= 1.1 * injected + 40  # rank 1 slept
    assert 0.9 * injected - 40 <= least(names.COMM_EXPOSED, "max") <= 1.1 * injected + 40  # rank 0 waited, and knows
    assert least(names.BACKWARD, "min") < 0.3 * injected
    assert least(names.COMM_EXPOSED, "min") < 0.3 * injected
    for step in steps:
        phases = sum(value for key, value in step.items() if key in map(names.phase_key, names.PHASES))
        assert phases == pytest.approx(step[names.PERF_STEP_MS], rel=0.001)
