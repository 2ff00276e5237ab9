"""Who we are is read from what each launcher really sets."""

import os
from pathlib import Path

import pytest

from training.launch import World, count_physical_cores, find_num_threads, may_have_gpu, read_world, set_environment

MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
TORCHRUN = {
    "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none",
    "OMP_NUM_THREADS": "1", **MEETING,
}  # fmt: skip
DEEPSPEED = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    **MEETING,
    "LOCAL_SIZE": "2",
    "CROSS_RANK": "1",
    "CROSS_SIZE": "2",
}
ACCELERATE = {**TORCHRUN, "ACCELERATE_MIXED_PRECISION": "no"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, World("python", 0, 0, 1, 1)),
        (TORCHRUN, World("torchrun", 1, 1, 2, 2)),
        (DEEPSPEED, World("deepspeed", 3, 1, 4, 2)),
        (ACCELERATE, World("accelerate", 1, 1, 2, 2)),
    ],
)
def test_the_world_is_what_the_launcher_said(environ, expected):
    assert read_world(environ) == expected


def test_threads_are_shared_between_the_ranks_of_a_machine(monkeypatch):
    monkeypatch.setattr("training.launch.count_physical_cores", lambda: 16)
    assert find_num_threads("auto", read_world({}), {}) == 16
    assert find_num_threads("auto", read_world(DEEPSPEED), DEEPSPEED) == 8
    assert find_num_threads("auto", read_world(TORCHRUN), TORCHRUN) == 8  # torchrun's own 1 is nobody's wish
    assert find_num_threads("auto", read_world({}), {"OMP_NUM_THREADS": "1"}) == 1
    assert find_num_threads("auto", read_world({}), {"OMP_NUM_THREADS": "5"}) == 5
    for launcher in ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"):
        environ = {"OMP_NUM_THREADS": "1", launcher: "no"}
        assert find_num_threads("auto", read_world({}), environ) == 16
    assert find_num_threads(3, read_world(TORCHRUN), TORCHRUN) == 3


def test_more_ranks_than_cores_get_one_thread_each(monkeypatch):
    monkeypatch.setattr("training.launch.count_physical_cores", lambda: 1)
    assert find_num_threads("auto", World("torchrun", 0, 0, 4, 4), {}) == 1


def test_the_environment_is_set_for_torch():
    environ: dict[str, str] = {}
    set_environment(World("python", 0, 0, 1, 1), 3, environ)
    assert environ["OMP_NUM_THREADS"] == environ["MKL_NUM_THREADS"] == "3"


def test_a_gpu_is_seen_by_its_device_file(tmp_path):
    (tmp_path / "nvidiactl").touch()
    assert not may_have_gpu({}, tmp_path)
    (tmp_path / "nvidia0").touch()
    assert may_have_gpu({}, tmp_path) and may_have_gpu({"CUDA_VISIBLE_DEVICES": "1"}, tmp_path)
    assert not may_have_gpu({"CUDA_VISIBLE_DEVICES": ""}, tmp_path)
    assert not may_have_gpu({"CUDA_VISIBLE_DEVICES": "-1"}, tmp_path)


def test_hyper_threads_of_one_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5}, raising=False)
    assert count_physical_cores(tmp_path) == 4  # nothing is known of them
    for cpu, siblings in {0: "0,4", 1: "1,5", 2: "2,6", 5: "1,5"}.items():
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    assert count_physical_cores(tmp_path) == 3
