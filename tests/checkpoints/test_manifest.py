"""A checkpoint counts as whole only when every byte of it is what it was when it was written."""

import json

import pytest

from data_prep.errors import UserError
from training.checkpoints.manifest import (
    MANIFEST,
    BrokenCheckpointError,
    check_resumable,
    read_manifest,
    verify_checkpoint,
    write_manifest,
)
from training.checkpoints.progress import Progress
from training.checkpoints.quarantine import find_resumable


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "checkpoint-20"
    (path / "global_step20").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"\x01" * 1000)
    (path / "global_step20" / "optim.pt").write_bytes(b"\x02" * 1000)
    write_manifest(path, step=20, world_size=2)
    return path


def test_a_whole_checkpoint_is_accepted(checkpoint):
    manifest = verify_checkpoint(checkpoint)
    assert (manifest.step, manifest.world_size) == (20, 2)
    assert set(manifest.files) == {"model.safetensors", "global_step20/optim.pt"}


def flip_a_bit(checkpoint):
    content = bytearray((checkpoint / "model.safetensors").read_bytes())
    content[500] ^= 1
    (checkpoint / "model.safetensors").write_bytes(content)


DAMAGE = {
    "a flipped bit": (flip_a_bit, "content differs"),
    "a file cut short": (lambda c: (c / "model.safetensors").write_bytes(b"\x01" * 999), "999 bytes"),
    "a missing file": (lambda c: (c / "global_step20/optim.pt").unlink(), "missing"),
    "no manifest": (lambda c: (c / MANIFEST).unlink(), "interrupted"),
    "half a manifest": (lambda c: (c / MANIFEST).write_text('{"step": 20, "wor'), "cannot be read"),
    "a manifest of another shape": (lambda c: (c / MANIFEST).write_text("[]"), "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_seen_and_named(checkpoint, damage):
    harm, reason = DAMAGE[damage]
    harm(checkpoint)
    with pytest.raises(UserError, match=reason):
        verify_checkpoint(checkpoint)


def test_one_flipped_bit_of_a_manifest_is_found_wherever_it_is(checkpoint):
    write_manifest(checkpoint, step=20, world_size=2, settings={"data.seed": 1, "rate": 0.1}, versions={"torch": "2é"})
    text = (checkpoint / MANIFEST).read_bytes()
    read_manifest(checkpoint)
    for place in range(0, 8 * len(text), 5):  # each byte, each bit of eight in turn
        flipped = bytearray(text)
        flipped[place // 8] ^= 1 << place % 8
        (checkpoint / MANIFEST).write_bytes(flipped)
        with pytest.raises(BrokenCheckpointError):
            read_manifest(checkpoint)


def test_a_changed_step_is_not_believed(checkpoint):
    text = (checkpoint / MANIFEST).read_text()
    (checkpoint / MANIFEST).write_text(text.replace('"step": 20', '"step": 21'))
    with pytest.raises(BrokenCheckpointError, match="differs from its own digest"):
        read_manifest(checkpoint)


def test_a_manifest_of_an_older_redline_is_read_with_one_line(checkpoint, caplog):
    caplog.set_level("INFO")
    files = read_manifest(checkpoint).files
    older = {"step": 20, "world_size": 2, "files": files, "settings": None}
    (checkpoint / MANIFEST).write_text(json.dumps(older, indent=1) + "\n")
    assert verify_checkpoint(checkpoint).step == 20
    assert [record.message for record in caplog.records] == [
        "checkpoint-20: an older Redline wrote it: its manifest has no digest of itself"
    ]
    (checkpoint / MANIFEST).write_text(json.dumps({**older, "format": 2}, indent=1) + "\n")
    with pytest.raises(BrokenCheckpointError, match="digest"):  # a new one cannot pass for an older one
        read_manifest(checkpoint)


def test_a_pickle_that_is_not_of_the_checkpoint_is_refused(checkpoint):
    (checkpoint / "notes.txt").write_text("mine")
    verify_checkpoint(checkpoint)
    (checkpoint / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(UserError, match="pytorch_model.bin: not of this checkpoint"):
        verify_checkpoint(checkpoint)


def test_hashes_that_ranks_made_are_taken_over_and_the_rest_is_hashed(checkpoint):
    entry = {"bytes": 1000, "xxh3_128": "as it was written"}
    write_manifest(checkpoint, {"global_step20/optim.pt": entry, "elsewhere.pt": entry}, step=20, world_size=2)
    manifest = read_manifest(checkpoint)
    assert set(manifest.files) == {"model.safetensors", "global_step20/optim.pt"}
    assert manifest.files["global_step20/optim.pt"] == entry and manifest.total_bytes == 2000
    with pytest.raises(BrokenCheckpointError, match="optim.pt: content differs"):  # as it would be read from the disk
        verify_checkpoint(checkpoint)


def test_resume_takes_the_latest_that_is_whole_and_says_why_not_a_later_one(checkpoint, caplog):
    later = checkpoint.with_name("checkpoint-100")
    later.mkdir()
    (later / "model.safetensors").write_bytes(b"half")
    assert find_resumable(checkpoint.parent) == checkpoint
    assert "checkpoint-100" in caplog.text and "interrupted" in caplog.text


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("optimizer.pt", True),
        ("optimizer_0/__0_0.distcp", True),
        ("global_step3/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", True),
        ("global_step3/mp_rank_00_model_states.pt", True),
        ("scheduler.pt", False),
    ],
)
def test_weights_alone_are_not_resumed_from(tmp_path, caplog, name, holds):
    """`training.save_only_model`: the Trainer would start optimizer and schedule from scratch without a word."""
    checkpoint = tmp_path / "checkpoint-3"
    for file in ("model.safetensors", name):
        (checkpoint / file).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / file).write_bytes(b"\x01")
    write_manifest(checkpoint, step=3, world_size=1)
    assert find_resumable(tmp_path) == (checkpoint if holds else None)
    assert ("no optimizer state" in caplog.text) is not holds
    if not holds:
        with pytest.raises(UserError, match="model.path="):
            check_resumable(checkpoint, verify=False)


def test_nothing_to_resume(tmp_path):
    assert find_resumable(tmp_path) is None


def test_steps_are_compared_as_numbers(tmp_path):
    for step in (90, 100):
        path = tmp_path / f"checkpoint-{step}"
        path.mkdir()
        (path / "optimizer.pt").write_bytes(b"\x02")
        write_manifest(path, step=step, world_size=1)
    assert find_resumable(tmp_path) == tmp_path / "checkpoint-100"


def test_progress_keeps_float32_sums_exactly(tmp_path):
    import numpy as np

    loss = float(np.float32(10.123456789))
    progress = Progress([loss, 0.1], last_logged_step=7, tokens=12345, seconds=1.5, position=64, order={"data.seed": 0})
    progress.write(tmp_path)
    assert Progress.read(tmp_path) == progress


@pytest.mark.parametrize("values", [{"tokens": 1}, {"position": 7, "order": "7 rows shuffled by seed 0"}])
def test_progress_without_a_position_in_a_known_order_is_an_error(tmp_path, values):
    Progress(**values).write(tmp_path)
    with pytest.raises(UserError, match="where the data stood"):
        Progress.read(tmp_path)


def test_progress_that_is_damaged_is_an_error(tmp_path):
    (tmp_path / "progress.json").write_text(json.dumps({"unknown": 1}))
    with pytest.raises(UserError, match="progress.json"):
        Progress.read(tmp_path)
