"""Saves under faults: a crash at any operation of one leaves the checkpoint before it, a full disk on any rank costs
this checkpoint alone, and a save in the background writes what a synchronous one does.

Two launches, with a layer under the C library that makes the faults (tests/faults/layer.c).
"""

import json
from pathlib import Path

import pytest

from tests.faults import injected_saves, layer
from tests.faults.injected_saves import NOT_STATE
from tests.integration.several_runs import UNFINISHED
from training.checkpoints.manifest import read_manifest, verify_checkpoint

SAVING = [
    "--save_strategy",
    "steps",
    "--save_steps",
    "1",
    "data.verify_packing=false",
    "perf.enabled=false",
    UNFINISHED,
]
KEEP_ALL = ["training.save_total_limit=null"]
STRIDE = 9
ZERO2 = ["--deepspeed", "zero2_bf16"]
RUNS = {
    "python": {
        "sync": [*KEEP_ALL, "--max_steps", "2"],
        "async": [*KEEP_ALL, "--max_steps", "2", "checkpoint.async=true"],
        "crash": ["--max_steps", "2", "training.save_total_limit=1"],
        "full-0-plain": ["--max_steps", "8", *KEEP_ALL],
        "full-0-async-single": ["--max_steps", "4", *KEEP_ALL, "checkpoint.async=true"],
    },
    "torchrun": {
        "full-1-ddp": ["--max_steps", "3", *KEEP_ALL],
        "sync": [*KEEP_ALL, "--max_steps", "2", *ZERO2],
        "async": [*KEEP_ALL, "--max_steps", "2", *ZERO2, "checkpoint.async=true"],
        "full-0-zero2": ["--max_steps", "6", *KEEP_ALL, *ZERO2],
        "full-1-zero2": ["--max_steps", "4", *KEEP_ALL, *ZERO2],
        "full-0-zero3": ["--max_steps", "3", *KEEP_ALL, "--deepspeed", "zero3_bf16", "checkpoint.async=true"],
    },
}

pytestmark = [pytest.mark.launch, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", params=RUNS)
def runs(request, launch_all, memory_folder):
    folder = memory_folder / request.param
    folder.mkdir()
    library = layer.build(folder)
    if library is None:
        pytest.skip("the fault layer needs Linux and a C compiler")
    given = {name: [*SAVING, *flags] for name, flags in RUNS[request.param].items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(library))
        patch.setenv("REDLINE_FAULT_STRIDE", str(STRIDE))
        return launch_all(request.param, folder, given, script=Path(injected_saves.__file__))


def state_of(checkpoint):
    files = read_manifest(checkpoint).files
    return {name: entry["xxh3_128"] for name, entry in files.items() if name not in NOT_STATE}


def test_a_save_in_the_background_is_the_synchronous_one(runs):
    for step in (1, 2):
        whole = verify_checkpoint(runs["async"].path / f"checkpoint-{step}")
        assert state_of(runs["async"].path / f"checkpoint-{step}") == state_of(runs["sync"].path / f"checkpoint-{step}")
        expected = (0, 1) if len(list(runs["async"].path.glob("*/rng_state.pth"))) else (2, 2)
        assert (whole.zero_stage, whole.world_size, whole.step) == (*expected, step)


def test_a_full_disk_on_a_rank_costs_the_checkpoint_alone(runs):
    for name, run in runs.items():
        if not name.startswith("full"):
            continue
        failed = dict(json.loads(line) for line in run.path.with_suffix(".jsonl").read_text().splitlines())
        full = {int(step) for step, at in failed.items() if at}
        assert len(full) >= len(failed) - 1 > 0, failed  # the last may come after the last write
        steps = {json.loads(line)["step"] for line in (run.path / "metrics.jsonl").read_text().splitlines()}
        kept = {int(path.name.partition("-")[2]) for path in run.path.glob("checkpoint-*")}
        assert kept == steps - full, name
        assert [verify_checkpoint(run.path / f"checkpoint-{step}").step for step in kept] == list(kept)
        events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
        assert {event["step"] for event in events if event["kind"] == "disk_full"} == full
        assert not (run.path / ".staging").exists()


def test_zero3_saves_synchronously_and_says_so(runs):
    if "full-0-zero3" in runs:
        assert "checkpoint.async: ZeRO-3 gathers its weights while they are written" in runs["full-0-zero3"].output


def test_a_crash_at_any_operation_leaves_a_whole_checkpoint(runs):
    if "crash" in runs:
        check_crashes(runs["crash"], stride=STRIDE)


def check_crashes(run, *, stride):
    found = json.loads(run.path.with_suffix(".json").read_text())
    assert len(found) > 150 / stride
    states = {}
    for number, operation, code, start, state, left in found:
        assert code == (layer.CRASHED if operation else 0), number
        assert left == [] and start in ("checkpoint-1", "checkpoint-2"), operation
        assert states.setdefault(start, state) == state, operation
    starts = [start for _, _, _, start, _, _ in found]
    assert starts == sorted(starts) and starts[-1] == "checkpoint-2"
    assert states["checkpoint-1"] and states["checkpoint-1"] != states["checkpoint-2"]
    assert states["checkpoint-2"] == state_of(run.path / "checkpoint-2")
