"""What a save writes is staged on each rank; an error of one writer stops no collective."""

import threading

import pytest
import torch

from training.checkpoints.manifest import hash_file
from training.checkpoints.staging import Staging, clear_staging, copy_to_host


def begin(run, **kwargs):
    staging = Staging(run, 7, **kwargs)
    staging.path.mkdir(parents=True)
    return staging


@pytest.mark.parametrize("in_background", [False, True])
def test_files_are_written_and_hashed_by_the_rank_that_saves_them(tmp_path, in_background):
    staging, tensor = begin(tmp_path, in_background=in_background), torch.arange(5.0)
    with staging.collecting():
        torch.save({"w": tensor}, staging.path / "optimizer.pt")
        torch.save({"w": tensor}, str(tmp_path / "other.pt"))  # of somebody else
    staging.write(lambda: (staging.path / "config.json").write_text("{}"))
    assert (tmp_path / "other.pt").exists() and torch.save.__module__ == "torch.serialization"
    assert (staging.path / "optimizer.pt").exists() is not in_background
    tensor += 1  # training goes on
    (staging.path / "rng_state_1.pth").write_bytes(b"of another rank, not yet all there")
    thread = threading.Thread(target=staging.run)
    thread.start()
    thread.join()
    assert torch.load(staging.path / "optimizer.pt")["w"].tolist() == [0, 1, 2, 3, 4]
    assert staging.files == {name: hash_file(staging.path / name) for name in ("config.json", "optimizer.pt")}
    assert staging.error is None


@pytest.mark.parametrize("in_background", [False, True])
def test_after_an_error_nothing_more_is_written_and_nothing_raised(tmp_path, in_background):
    staging = begin(tmp_path, in_background=in_background, writes=False)
    with staging.collecting():
        torch.save(1, staging.path / "no such folder" / "shard.pt")
        torch.save(2, staging.path / "rng_state_1.pth")
    staging.run()
    assert isinstance(staging.error, FileNotFoundError)
    assert list(staging.path.iterdir()) == [] and staging.files == {}


def test_a_copy_is_in_host_memory_and_keeps_ties(tmp_path):
    trained, frozen = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3), requires_grad=False)
    copy = copy_to_host({"embed": trained, "head": trained, "base": frozen, "buffer": torch.zeros(2)})
    with torch.no_grad():
        trained.add_(1)
    assert copy["embed"].tolist() == [1, 1, 1] and copy["embed"].data_ptr() == copy["head"].data_ptr()
    assert copy["base"].data_ptr() == frozen.data_ptr()


def test_what_a_killed_save_left_is_cleared(tmp_path):
    staging = begin(tmp_path)
    (staging.path / "half.pt").write_bytes(b"123")
    assert clear_staging(tmp_path) == (1, 3)
    assert clear_staging(tmp_path) == (0, 0) and list(tmp_path.iterdir()) == []
