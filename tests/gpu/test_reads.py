"""PyTorch raises no error in a run that may not wait for the GPU between two records. Skipped, with the reason, where
there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.integration import watched_reads
from tests.integration.conftest import launch_all, recipe  # noqa: F401  (fixtures)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.launch,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

STEPS = 12
# MiniGPT of the recipe has attention dropout, which goes to SDPA: without it the kernel itself runs.
FLAGS = ["training.bf16=true", "model.config.attention_dropout=0.0", "model.attn_implementation=torch_varlen"]
RUNS = {"packed": FLAGS, "padded": [*FLAGS, "data.packing=none"], "dropout": ["training.bf16=true"]}


def test_no_step_without_a_record_waits_for_the_gpu(launch_all, tmp_path: Path):  # noqa: F811
    """The script sets PyTorch's debug mode to `error` but where a step is checked to be finite."""
    flags = ["perf.log_every=100", "monitor.train_every=100", f"training.max_steps={STEPS}", "--unfinished"]
    runs = {name: [*own, *flags] for name, own in RUNS.items()}
    finished = launch_all("python", tmp_path, runs, script=Path(watched_reads.__file__))
    for name, run in finished.items():
        assert run.json("reads.json")["steps"] == STEPS, name
