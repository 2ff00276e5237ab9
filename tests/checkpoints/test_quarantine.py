"""A resume takes the newest good checkpoint; whatever happens to a file of a newer one is found."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from training.checkpoints.manifest import list_files, write_manifest
from training.checkpoints.quarantine import find_resumable


def make_checkpoint(path, step):
    """What ZeRO-2 of two ranks leaves, in small."""
    checkpoint = path / f"checkpoint-{step}"
    shards = checkpoint / f"global_step{step}"
    shards.mkdir(parents=True)
    save_file({"weight": torch.full((3,), float(step))}, checkpoint / "model.safetensors")
    for rank in range(2):
        torch.save({"rank": rank, "step": step}, shards / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        torch.save([rank], checkpoint / f"rng_state_{rank}.pth")
    torch.save({"step": step}, shards / "mp_rank_00_model_states.pt")
    (checkpoint / "latest").write_text(shards.name)
    (checkpoint / "progress.json").write_text("{}")
    write_manifest(checkpoint, step=step, world_size=2, zero_stage=2)
    return checkpoint


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


HARMS = {"flipped": flip, "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]), "removed": lambda p: p.unlink()}


@pytest.mark.parametrize("harm", HARMS)
def test_harm_to_any_file_is_found_and_the_one_before_is_taken(tmp_path, harm):
    whole = tmp_path / "whole"
    make_checkpoint(whole, 10)
    make_checkpoint(whole, 20)
    names = [*list_files(whole / "checkpoint-20"), "manifest.json"]
    assert len(names) == 9
    for number, name in enumerate(names):
        run = tmp_path / f"run-{number}"
        shutil.copytree(whole, run)
        HARMS[harm](run / "checkpoint-20" / name)
        assert find_resumable(run) == run / "checkpoint-10", name
        assert sorted(path.name for path in run.iterdir()) == ["checkpoint-10", "events.jsonl", "quarantine"]
        [event] = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        assert (event["kind"], event["kept_as"]) == ("quarantine", "quarantine/checkpoint-20")
        assert name in event["message"]


def test_quarantine_keeps_every_broken_one(tmp_path):
    for _ in range(2):
        make_checkpoint(tmp_path, 10)
        (tmp_path / "checkpoint-10" / "manifest.json").unlink()
        assert find_resumable(tmp_path) is None
    assert sorted(path.name for path in (tmp_path / "quarantine").iterdir()) == ["checkpoint-10", "checkpoint-10-1"]
