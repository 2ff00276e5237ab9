"""One tiny recipe, one token store and one way to launch, for all integration tests.

A launch costs some ten seconds of imports, so each one is made to show several things, and runs that only
have to exist share one.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.integration import several_runs
from tests.integration.several_runs import THEN
from training.kernels.cpu import build

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

RECIPE = """
model:
  kind: minigpt
  config: {{hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2,
            num_key_value_heads: 1, head_dim: 16, attention_dropout: 0.1}}
tokenizer: {{vocab_size: 512}}
data:
  sources: [{{path: embedded, max_documents: 12}}]
  store_dir: {store_dir}
  seq_len: 64
  validation_share: 0.2
  num_proc: 1
training:
  per_device_train_batch_size: 2
  per_device_eval_batch_size: 4
  gradient_accumulation_steps: 2
  max_steps: 6
  learning_rate: 1.0e-3
  lr_scheduler_type: constant
  warmup_steps: 0
  eval_strategy: "no"
  save_strategy: "no"
monitor: {{train_every: 1, plot_every: 0}}
perf: {{log_every: 1}}
"""

LAUNCHERS: dict[str, list[str]] = {
    "python": [sys.executable],
    "torchrun": [str(BIN / "torchrun"), "--standalone", "--nproc_per_node=2"],
    "deepspeed": [str(BIN / "deepspeed"), "--num_gpus", "2"],
    # accelerate calls several ranks multi_gpu, on a CPU too
    "accelerate": [str(BIN / "accelerate"), "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
}


@dataclass(frozen=True)
class Finished:
    """A launch that ended: its run directory and what it printed."""

    path: Path
    code: int
    output: str

    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    def values(self, key: str) -> list[float]:
        return [record[key] for record in self.metrics() if key in record]

    def json(self, name: str) -> dict[str, Any]:
        return json.loads((self.path / name).read_text())

    def checkpoint_files(self, step: int) -> dict[str, str]:
        """Hashes by file name, as the manifest has them."""
        files = json.loads((self.path / f"checkpoint-{step}" / "manifest.json").read_text())["files"]
        return {name: entry["xxh3_128"] for name, entry in files.items()}


Launch = Callable[..., Finished]


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A MiniGPT of 20 thousand parameters on a dozen files; the first launch builds its store and its first three
    measure the machine."""
    folder = tmp_path_factory.mktemp("recipe")
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.format(store_dir=folder / "stores"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(build.VARIABLE, str(build.find_cache_dir()))  # kernels are built once for all
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield path


@pytest.fixture
def launch(recipe: Path, tmp_path: Path) -> Launch:
    """`launch("torchrun", "run-name", *flags)`: start, wait, and hand back what is there afterwards."""

    def start(launcher: str, name: str, *flags: str, config: Path = recipe, expect: int | None = 0) -> Finished:
        command = [*LAUNCHERS[launcher], *own_port(launcher), str(ROOT / "training" / "train.py")]
        return run([*command, *_arguments(config, tmp_path / name, flags)], tmp_path / name, expect)

    return start


@pytest.fixture(scope="module")
def memory_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory, where there is room: a thousand flushes to a busy disk take minutes."""
    shared = Path("/dev/shm")
    if not (shared.is_dir() and os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > 2 << 30):
        yield tmp_path_factory.mktemp("saves")
        return
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def launch_all(recipe: Path) -> Callable[..., dict[str, Finished]]:
    """`launch_all("torchrun", folder, {"one": flags, "two": flags})`: runs that share one launch, one after another."""

    def start(
        launcher: str,
        folder: Path,
        runs: dict[str, list[str]],
        config: Path = recipe,
        script: Path = Path(several_runs.__file__),
    ) -> dict[str, Finished]:
        command = [*LAUNCHERS[launcher], *own_port(launcher), str(script)]
        for name, flags in runs.items():
            command += [*_arguments(config, folder / name, flags), THEN]
        done = run(command, folder / next(iter(runs)), timeout=580)
        return {name: replace(done, path=folder / name) for name in runs}

    return start


def _arguments(config: Path, run_dir: Path, flags: Iterable[str]) -> list[str]:
    return ["--config", str(config), "--output_dir", str(run_dir), *flags]


def own_port(launcher: str) -> list[str]:
    """A meeting point that no other launch on this machine uses; torchrun --standalone finds its own."""
    flag = {"deepspeed": "--master_port", "accelerate": "--main_process_port"}.get(launcher)
    if flag is None:
        return []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return [flag, str(probe.getsockname()[1])]


def run(command: list[str], run_dir: Path, expect: int | None = 0, timeout: int = 280) -> Finished:
    """Run in an environment without what a developer's shell may set."""
    done = subprocess.run(
        command, env=find_environment(), cwd=run_dir.parent, capture_output=True, text=True, timeout=timeout
    )
    finished = Finished(run_dir, done.returncode, done.stdout + done.stderr)
    assert expect is None or finished.code == expect, finished.output[-6000:]
    return finished


def find_environment() -> dict[str, str]:
    """That of a launch: without what a developer's shell may set."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "MKL_", "WANDB_", "ACCELERATE_"))}
    environ |= {"PATH": f"{BIN}:{os.environ['PATH']}", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    return environ | {"HF_HUB_OFFLINE": "1"}
