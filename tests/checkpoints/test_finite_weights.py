"""The last checkpoint with finite weights is found below those of an older Redline that are not."""

import math

import pytest
import torch
from safetensors.torch import save_file

from data_prep.errors import UserError
from training.checkpoints.finite_weights import find_bad_weight
from training.checkpoints.manifest import check_resumable, find_last_finite, write_manifest
from training.checkpoints.quarantine import find_resumable


@pytest.fixture
def run(tmp_path):
    """Steps 2 and 10 have finite weights, 20 and 30 have not; 40 was cut short."""
    for step, value in ((2, 1.0), (10, 1.0), (20, math.inf), (30, math.nan), (40, 1.0)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        weights = {"a.weight": torch.ones(3), "b.weight": torch.tensor([1.0, value]), "ids": torch.tensor([1])}
        save_file(weights, folder / "model.safetensors")
        (folder / "optimizer.pt").write_bytes(b"")
        if step != 40:
            write_manifest(folder, step=step, world_size=1)
    return tmp_path


def test_the_highest_step_that_is_whole_and_finite(run):
    last = find_last_finite(run)
    assert last is not None and last.name == "checkpoint-10"
    assert find_bad_weight(run / "checkpoint-30") == "b.weight" and find_bad_weight(run / "checkpoint-2") is None


def test_resuming_passes_over_weights_that_are_not_finite(run):
    found = find_resumable(run)
    assert found is not None and found.name == "checkpoint-10"
    with pytest.raises(UserError, match="checkpoint-30: its weights are not finite, first b.weight"):
        check_resumable(run / "checkpoint-30")


def test_none_at_all(tmp_path):
    assert find_last_finite(tmp_path) is None
