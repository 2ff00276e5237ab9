"""A run directory that an earlier session left: checkpoints 3 and 6, their records and a summary."""

from pathlib import Path

from training.checkpoints.manifest import write_manifest
from training.config import LoadedConfig, load_config
from training.run_dir import RunDir


def make_older_run(path: Path) -> RunDir:
    """Written by two ranks; each checkpoint holds one file, its step as a byte."""
    run_dir = RunDir(path)
    for step in (3, 6):
        checkpoint = run_dir.path / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "optimizer.pt").write_bytes(bytes([step]))
        write_manifest(checkpoint, step=step, world_size=2)
        run_dir.append_metrics({"step": step})
    run_dir.write_json(run_dir.summary, {"steps": 6})
    return run_dir


def load(*flags: str) -> LoadedConfig:
    return load_config(["--config", "debug", *flags])
