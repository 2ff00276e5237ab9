"""Saves under faults, at length; tests/integration/test_saves.py is the quick part."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import injected_saves, killed_saves, layer
from tests.integration.conftest import *  # noqa: F403  its fixtures
from tests.integration.test_saves import KEEP_ALL, SAVING, check_crashes

pytestmark = [pytest.mark.launch, pytest.mark.timeout(1200)]
BRIEFLY = ["data.verify_packing=false", "perf.enabled=false", "monitor.plot_every=0"]
KILLED = {"plain": (1, 100, 400, []), "zero2": (2, 50, 250, ["--deepspeed", "zero2_bf16"])}


@pytest.mark.parametrize("name", KILLED)
def test_killed_while_saving_it_resumes_as_the_straight_run(name, recipe, memory_folder):
    folder = memory_folder / name
    folder.mkdir()
    ranks, kills, steps, flags = KILLED[name]
    arguments = ["--config", str(recipe), *BRIEFLY, "--save_strategy", "steps", "--save_steps", "1", *flags]
    command = [sys.executable, killed_saves.__file__, str(folder), str(ranks), str(kills), *arguments]
    log = folder / "log"
    environ = {**os.environ, "REDLINE_FAULT_LOG": str(log), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, "--max_steps", str(steps)], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:] + (log.read_text()[-3000:] if log.exists() else "")
    hits = json.loads((folder / "killed.json").read_text())
    assert len(hits) == kills and sum(hit for _, hit in hits) > kills / 10
    print(f"{name}: {kills} kills, {sum(hit for _, hit in hits)} in a save, last at step {hits[-1][0]}")


def test_a_crash_at_every_operation_of_a_save(launch_all, memory_folder, monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", str(layer.build(memory_folder)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    given = {"crash": [*SAVING, "--max_steps", "2", "training.save_total_limit=1"]}
    runs = launch_all("python", memory_folder, given, script=Path(injected_saves.__file__))
    check_crashes(runs["crash"], stride=1)


def test_a_full_disk_at_many_writes_of_either_rank(launch_all, memory_folder, monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", str(layer.build(memory_folder)))
    flags = [*SAVING, *KEEP_ALL, "--deepspeed", "zero2_bf16", "--max_steps"]
    given = {"full-0-zero2": [*flags, "90"], "full-1-zero2": [*flags, "20"]}
    runs = launch_all("torchrun", memory_folder, given, script=Path(injected_saves.__file__))
    for run in runs.values():
        failed = dict(json.loads(line) for line in run.path.with_suffix(".jsonl").read_text().splitlines())
        full = {int(step) for step, at in failed.items() if at}
        kept = {int(path.name.partition("-")[2]) for path in run.path.glob("checkpoint-*")}
        steps = {json.loads(line)["step"] for line in (run.path / "metrics.jsonl").read_text().splitlines()}
        assert full and kept == steps - full
