"""That `benchmark overhead` runs on a GPU. How much it finds is its own page's to say: no test judges a time."""

import json

import pytest
import torch

from training.benchmark.__main__ import main

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def test_steps_on_a_gpu_are_held_against_its_own_aim(tmp_path):
    page = tmp_path / "overhead.md"
    data = [f"data.store_dir={tmp_path / 'stores'}", "data.num_proc=1", "perf.log_every=6"]
    assert main(["overhead", "--config", "debug", "--steps", "24", "--output", str(page), *data]) == 0
    found = json.loads(page.with_suffix(".json").read_text())
    assert found["device"] == "cuda"
    assert len(found["seconds"]) == 24 and min(found["seconds"]) > 0
    assert "<= 0.2 %" in page.read_text()
