"""Ranks that are killed or hang under a supervisor, data workers that are killed, and what then must be as if not.

Ten minutes: `make test-faults`. REDLINE_FAULT_TRIALS sets how often each fault is injected (5).
"""

import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest
from safetensors.torch import load_file

from tests.integration.running import Running, start
from training.metrics import names

pytestmark = [pytest.mark.launch, pytest.mark.timeout(1500)]
TRIALS = int(os.environ.get("REDLINE_FAULT_TRIALS", "5"))
SUPERVISE = [sys.executable, "-m", "training.supervise", "--wait", "0.5", "--max_failures", "3", "--"]
SAVE = ["--save_strategy", "steps", "--save_steps", "5", "checkpoint.verify_final=false"]
THIRTY_SECONDS = 30.0
# Long enough for a kill in each attempt, which starts in seconds; slow enough a step for it to hit the run.
STEPS_A_TRIAL = 60


def check_same_weights(one, other):
    weights, expected = (load_file(run.path / "final" / "model.safetensors") for run in (one, other))
    assert weights.keys() == expected.keys() and all(weights[key].equal(expected[key]) for key in expected)


def starts(running: Running) -> int:
    return len(running.events("start") + running.events("resume"))


def inject(running: Running, number: int, draw: random.Random) -> list[float]:
    """Send the signal to a rank in each attempt; seconds until the next attempt trained."""
    seconds = []
    for trial in range(TRIALS):
        running.wait_until(lambda: starts(running) > trial, 200)  # noqa: B023
        first = (running.steps() or [0])[-1]
        running.wait_for_step(max(5, first) + 1)
        time.sleep(draw.uniform(0, 0.5))
        saved = running.events("save")
        running.wait_until(lambda: len(running.events("save")) > len(saved))  # noqa: B023
        began = time.monotonic()
        running.send(number, f"rank {draw.randrange(2)}")
        running.wait_until(lambda: starts(running) > trial + 1, 200)  # noqa: B023
        seconds.append(time.monotonic() - began)
    return seconds


@pytest.mark.parametrize(("launcher", "fault"), [("torchrun", "killed"), ("deepspeed", "killed"), ("torchrun", "hung")])
def test_ranks_that_are_killed_or_hang_come_back_and_train_the_same(recipe, tmp_path, launch, launcher, fault):
    flags = [*SAVE, "--max_steps", str(STEPS_A_TRIAL * TRIALS)]
    flags += ["--deepspeed", "zero2_bf16"] if launcher == "deepspeed" else []
    stalls = ["monitor.on_stall=stop", "monitor.stall_seconds=3"]
    running = start(launcher, recipe, tmp_path / "run", *flags, *stalls, before=SUPERVISE)
    seconds = inject(running, signal.SIGKILL if fault == "killed" else signal.SIGSTOP, random.Random(0))
    supervised = running.end(400)
    print(f"{launcher}, {fault}: back after", " ".join(f"{value:.1f}" for value in seconds), "s")
    assert supervised.code == 0, supervised.output[-6000:]
    assert len(running.events("attempt")) == TRIALS + 1 and max(seconds) < THIRTY_SECONDS
    if fault == "hung":
        stacks = [path.read_text() for path in (running.path / "stalls").glob("rank-*.txt")]
        assert stacks and all("most recent call first" in text for text in stacks)
    straight = launch(launcher, "straight", *flags)
    assert supervised.values(names.TRAIN_LOSS) == straight.values(names.TRAIN_LOSS)
    check_same_weights(supervised, straight)


def test_killed_data_workers_leave_the_run_as_it_was(recipe, tmp_path, launch):
    flags = ["--max_steps", "60", "checkpoint.verify_final=false", "data.num_workers=2"]
    running = start("python", recipe, tmp_path / "run", *flags)
    for step in (3, 6, 20):
        running.wait_for_step(step)
        workers = psutil.Process(running.process.pid).children(recursive=True)
        if workers:
            random.Random(step).choice(workers).send_signal(signal.SIGKILL)
    finished = running.end(120)
    assert finished.code == 0 and "start again where they were" in finished.output, finished.output[-4000:]
    straight = launch("python", "straight", *flags)
    assert finished.values(names.TRAIN_LOSS) == straight.values(names.TRAIN_LOSS)
    check_same_weights(finished, straight)


def test_a_rank_that_waits_for_another_ends_after_ddp_timeout_on_a_cpu(recipe, tmp_path):
    flags = ["--max_steps", "5000", "--ddp_timeout", "5"]
    running = start("torchrun", recipe, tmp_path / "run", *flags)
    running.wait_for_step(3)
    stopped = running.rank(1)
    os.kill(stopped, signal.SIGSTOP)
    began = time.monotonic()
    running.wait_until(lambda: "imed out" in running.output() or running.events("error"), 30)
    assert 4 < time.monotonic() - began < 15
    running.kill()
    running.process.wait(60)


def test_the_job_of_a_supervisor_that_is_killed_saves_and_ends(recipe, tmp_path):
    running = start("torchrun", recipe, tmp_path / "run", "--max_steps", "5000", before=SUPERVISE)
    running.wait_for_step(3)
    running.send(signal.SIGKILL, "launcher")
    try:
        running.process.wait(10)
    except subprocess.TimeoutExpired:
        pytest.fail("the supervisor is still there")
    finished = running.end()
    assert running.events("stop"), finished.output[-3000:]
