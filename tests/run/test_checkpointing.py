"""`perf.activation_checkpointing: auto`: the first mode that fits on every rank."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from training.activations.modes import MODES
from training.config import load_config
from training.launch import World
from training.run import checkpointing

PEAKS = dict(zip((mode.name for mode in MODES), (100, 110, 70, 40, 30), strict=True))
GIB = 2**30


def fit(monkeypatch: Any, budget: int, others: float = 0.0, *changes: str) -> tuple[str, list[str]]:
    """The mode chosen beside a rank that needs mode number `others`, and those that were planned."""
    tried: list[str] = []

    def predict_peak(rows: int, *, checkpointing: Any) -> int:
        assert rows == 6
        tried.append(checkpointing.name)
        return PEAKS[checkpointing.name] * GIB

    monkeypatch.setattr(checkpointing, "Planner", lambda *_, **__: SimpleNamespace(predict_peak=predict_peak))
    monkeypatch.setattr(checkpointing, "measure_free_bytes", lambda *_: budget * GIB)
    monkeypatch.setattr(checkpointing, "gather_floats", lambda mine, device: [mine, others])
    loaded = load_config(["--per_device_train_batch_size", "6", "perf.activation_checkpointing=auto", *changes])
    chosen = checkpointing.fit_checkpointing(loaded, World("torchrun", 0, 0, 2, 2), torch.device("cpu"))
    return chosen.config.perf.activation_checkpointing, tried


@pytest.mark.parametrize(
    ("budget", "others", "mode", "planned"),
    [(100, 0, "off", 1), (99, 0, "every_4", 3), (40, 0, "every_2", 4), (39, 0, "full", 5), (100, 3, "every_2", 1)],
)
def test_the_first_that_fits_on_every_rank(monkeypatch, caplog, budget, others, mode, planned):
    caplog.set_level("INFO", logger="redline.train")
    assert fit(monkeypatch, budget, others) == (mode, list(PEAKS)[:planned])
    peaks = ", ".join(f"{name} {peak}.00" for name, peak in list(PEAKS.items())[:planned])
    said = f"{mode} (auto: planned peaks with 6 rows in GiB: {peaks}; {budget}.00 GiB are available)"
    assert [record.message for record in caplog.records] == [f"activation checkpointing: {said}"]


def test_what_does_not_fit_at_all_is_said_unless_the_rows_are_still_to_be_chosen(monkeypatch, caplog):
    assert fit(monkeypatch, 29)[0] == "full"
    assert "even full is planned to take 30.00 of 29.00 GiB: lower training.per_device_train" in caplog.text
    caplog.clear()
    assert fit(monkeypatch, 29, 0.0, "perf.micro_batch_size=auto")[0] == "full"
    assert "even full" not in caplog.text
