"""Each signal to a rank, the launcher and the whole group, under each launcher, and at moments that are drawn.

A quarter of an hour: `make test-faults`. The quick part is tests/integration/test_signals.py.
"""

import os
import random
import signal
import time

import pytest

from tests.integration.conftest import LAUNCHERS
from tests.integration.running import Running, start
from training.checkpoints.manifest import find_checkpoints, verify_checkpoint

pytestmark = [pytest.mark.launch, pytest.mark.timeout(300)]
LONG = ["--max_steps", "5000", "checkpoint.verify_final=false"]
TEN_SECONDS = 10.0
RANDOM_POINTS = int(os.environ.get("REDLINE_FAULT_TRIALS", "20"))
TARGETS = {
    (launcher, target)
    for launcher in LAUNCHERS
    for target in ("rank 0" if launcher == "python" else "rank 1", "launcher", "group")
    if (launcher, target) != ("python", "launcher")  # it is the rank
}
DEEPSPEED = ["--deepspeed", "zero2_bf16"]


def begin(launcher, recipe, path) -> Running:
    running = start(launcher, recipe, path, *LONG, *(DEEPSPEED if launcher == "deepspeed" else []))
    running.wait_for_step(3)
    return running


def check_end(running: Running, least_step: int) -> int:
    """Ended in time, without orphans, with a whole checkpoint of its last step; which is returned."""
    began = time.monotonic()
    stopped = running.end()
    assert time.monotonic() - began < TEN_SECONDS, stopped.output[-3000:]
    [event] = running.events("stop")
    newest = find_checkpoints(stopped.path)[0]
    verify_checkpoint(newest)
    assert newest.name == f"checkpoint-{event['step']}" and event["step"] >= least_step
    assert max(running.steps()) == event["step"]
    return event["step"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("launcher", "target"), sorted(TARGETS))
def test_a_signal_stops_the_run_at_the_end_of_a_step(recipe, tmp_path, launcher, target, number):
    running = begin(launcher, recipe, tmp_path / "run")
    step = running.steps()[-1]
    running.send(number, target)
    assert check_end(running, step) <= step + 200
    assert running.process.returncode != 0


@pytest.mark.parametrize(("launcher", "target"), sorted(TARGETS))
def test_sigusr1_saves_and_a_launcher_that_it_kills_takes_its_ranks_along(recipe, tmp_path, launcher, target):
    running = begin(launcher, recipe, tmp_path / "run")
    step = running.steps()[-1]
    running.send(signal.SIGUSR1, target)
    if "rank" in target or launcher == "python":
        running.wait_until(lambda: running.events("save"))
        saved = running.events("save")[0]["step"]
        running.wait_for_step(saved + 2)
        verify_checkpoint(running.path / f"checkpoint-{saved}")
        running.send(signal.SIGTERM, target)
    check_end(running, step)


@pytest.mark.parametrize("launcher", [name for name in LAUNCHERS if name != "python"])
def test_no_rank_outlives_a_launcher_that_is_killed(recipe, tmp_path, launcher):
    running = begin(launcher, recipe, tmp_path / "run")
    running.send(signal.SIGKILL, "launcher")
    check_end(running, 3)


def test_two_ranks_end_at_one_step_whenever_the_signal_comes(recipe, tmp_path):
    """Each launch continues where the last one was stopped, a moment after it began to train: in a step, an evaluation
    or a save."""
    often = ["--eval_strategy", "steps", "--eval_steps", "2", "--per_device_eval_batch_size", "1"]
    often += ["--save_strategy", "steps", "--save_steps", "3"]
    draw, step = random.Random(0), 0
    for trial in range(RANDOM_POINTS):
        running = start("torchrun", recipe, tmp_path / "run", *LONG, *often, "--resume", "auto")
        running.wait_until(lambda: len(running.events("start") + running.events("resume")) > trial)  # noqa: B023
        time.sleep(draw.uniform(0, 2))
        running.send(draw.choice([signal.SIGTERM, signal.SIGINT]), f"rank {draw.randrange(2)}")
        running.end()
        stops = running.events("stop")
        assert len(stops) == trial + 1 and stops[-1]["step"] >= step, running.output()[-3000:]
        step = stops[-1]["step"]
        if step:
            verify_checkpoint(running.path / f"checkpoint-{step}")
    assert step > RANDOM_POINTS


def test_while_data_is_prepared_it_ends_at_once(recipe, tmp_path):
    for launcher, target in (("python", "rank 0"), ("torchrun", "rank 1"), ("torchrun", "launcher")):
        path = tmp_path / f"{launcher}-{target[:4]}"
        stores = path.with_suffix(".stores")
        data = [f"data.store_dir={stores}", "data.sources=[{path: embedded}]", "data.num_proc=2"]
        running = start(launcher, recipe, path, *LONG, *data)
        running.wait_until(stores.is_dir)
        time.sleep(0.3)
        running.send(signal.SIGTERM, target)
        began = time.monotonic()
        stopped = running.end()
        assert time.monotonic() - began < TEN_SECONDS and stopped.code in (143, 1), stopped.output[-3000:]
        assert not stopped.path.exists()
