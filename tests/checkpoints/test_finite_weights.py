"""The last checkpoint with finite weights is found below those of an older Redline that are not."""

import math

import pytest
import torch
from safetensors.torch import save_file

from training.checkpoints.finite_weights import find_bad_weight, find_last_finite
from training.checkpoints.manifest import write_manifest


@pytest.fixture
def run(tmp_path):
    """Steps 2 and 10 have finite weights, 20 and 30 have not; 40 was cut short."""
    for step, value in ((2, 1.0), (10, 1.0), (20, math.inf), (30, math.nan), (40, 1.0)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        weights = {"a.weight": torch.ones(3), "b.weight": torch.tensor([1.0, value]), "ids": torch.tensor([1])}
        save_file(weights, folder / "model.safetensors")
        if step != 40:
            write_manifest(folder, step=step, world_size=1)
    return tmp_path


def test_the_highest_step_that_is_whole_and_finite(run):
    last = find_last_finite(run)
    assert last is not None and last.name == "checkpoint-10"
    assert find_bad_weight(run / "checkpoint-30") == "b.weight" and find_bad_weight(run / "checkpoint-2") is None


def test_a_file_that_cannot_be_read_is_not_trusted(run):
    (run / "checkpoint-10" / "model.safetensors").write_bytes(b"no tensors")
    last = find_last_finite(run)
    assert last is not None and last.name == "checkpoint-2"


def test_none_at_all(tmp_path):
    assert find_last_finite(tmp_path) is None
