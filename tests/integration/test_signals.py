"""A signal to a run: saved whole at the end of a step, ended with its code, continued bit for bit.

Every launcher and every target of a signal: tests/faults/test_signals.py.
"""

import signal
import time

import pytest
from safetensors.torch import load_file

from tests.integration.running import start
from training.checkpoints.manifest import verify_checkpoint
from training.metrics import names

pytestmark = [pytest.mark.launch, pytest.mark.timeout(300)]
LONG = ["--max_steps", "5000", "checkpoint.verify_final=false"]


def test_sigterm_to_one_rank_of_two_stops_both_at_one_step(recipe, tmp_path, launch_all):
    running = start("torchrun", recipe, tmp_path / "stopped", *LONG)
    running.wait_for_step(3)
    running.send(signal.SIGTERM, "rank 1")
    began = time.monotonic()
    stopped = running.end()
    assert time.monotonic() - began < 10 and stopped.code == 1  # torchrun's own code for a rank that ended with 143
    [event] = running.events("stop")
    step = event["step"]
    verify_checkpoint(stopped.path / f"checkpoint-{step}")
    summary = stopped.json("summary.json")
    assert (summary["status"], summary["steps"], event["exit_code"]) == ("stopped", step, 143)

    length = ["--max_steps", str(step + 3), "checkpoint.verify_final=false"]
    runs = launch_all("torchrun", tmp_path, {"stopped": [*length, "--resume", "auto"], "straight": length})
    resumed, straight = runs["stopped"], runs["straight"]
    assert resumed.values(names.TRAIN_LOSS) == straight.values(names.TRAIN_LOSS)
    weights, expected = (load_file(run.path / "final" / "model.safetensors") for run in (resumed, straight))
    assert all(weights[key].equal(expected[key]) for key in expected)


def test_sigusr1_saves_and_sigint_stops(recipe, tmp_path):
    running = start("python", recipe, tmp_path / "run", *LONG)
    running.wait_for_step(2)
    running.send(signal.SIGUSR1, "launcher")
    running.wait_until(lambda: running.events("save"))
    [saved] = running.events("save")
    running.wait_for_step(saved["step"] + 2)
    running.send(signal.SIGINT, "launcher")
    stopped = running.end()
    assert stopped.code == 130 and "stopped by SIGINT: --resume auto" in stopped.output
    assert [event["message"].split(":")[0] for event in running.events("signal")] == ["SIGUSR1", "SIGINT"]
    for event in running.events("save"):
        verify_checkpoint(stopped.path / f"checkpoint-{event['step']}")
