"""What a run may plan with: its share of the host, within the limit of a container."""

from types import SimpleNamespace

import torch

from training.memory import available
from training.memory.available import measure_free_bytes

CPU = torch.device("cpu")


def test_cpu_memory_is_shared_by_the_ranks_and_a_container_has_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(available.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(available, "CGROUP", tmp_path)
    assert measure_free_bytes(CPU, 2) == 400
    (tmp_path / "memory.max").write_text("600\n")
    (tmp_path / "memory.current").write_text("100\n")
    assert measure_free_bytes(CPU, 2) == 200
    (tmp_path / "memory.max").write_text("max\n")
    assert measure_free_bytes(CPU, 2) == 400
