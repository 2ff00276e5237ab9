"""The plan against `torch.cuda.max_memory_allocated`. Skipped, with the reason, where there is no GPU."""

import json

import pytest
import torch

from training.benchmark.memory.command import main
from training.benchmark.memory.report import AIMS_PCT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def test_quick_grid_is_within_the_worst_error_allowed(tmp_path):
    page = tmp_path / "memory.md"
    assert main(["--quick", "--output", str(page)]) == 0
    result = json.loads(page.with_suffix(".json").read_text())
    assert result["machine"]["device"] == torch.cuda.get_device_name()
    measured = [row for row in result["rows"] if "reason" not in row]
    assert len(measured) == (4 if torch.cuda.device_count() > 1 else 3)  # one needs two GPUs
    assert all(abs(row["error_pct"]) <= AIMS_PCT["GPU"][1] for row in measured)
