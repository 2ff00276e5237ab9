"""A checkpoint is whole once its manifest is there; only the rank that writes for all writes it."""

from training.checkpoints.complete import complete_checkpoint
from training.checkpoints.manifest import read_manifest
from training.checkpoints.progress import Progress


def test_the_manifest_covers_progress_and_the_files_of_the_trainer(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    progress = Progress(tokens=40, position=7)
    complete_checkpoint(tmp_path, progress, step=5, world_size=2, settings={"data.seed": 1}, writes=True)
    manifest = read_manifest(tmp_path)
    assert set(manifest.files) == {"model.safetensors", "progress.json"}
    assert (manifest.step, manifest.world_size, manifest.settings) == (5, 2, {"data.seed": 1})
    assert Progress.read(tmp_path) == progress


def test_other_ranks_write_nothing(tmp_path):
    complete_checkpoint(tmp_path, Progress(position=7), step=5, world_size=2, settings=None, writes=False)
    assert not list(tmp_path.iterdir())
