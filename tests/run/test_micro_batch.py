"""Choosing a micro-batch, by hand; the trial's batches; a run with a chosen one against one with the sizes written."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_prep.errors import UserError
from training.config import load_config
from training.data.collator import Collator
from training.launch import World
from training.memory.estimate import Evaluation
from training.run import micro_batch
from training.run.micro_batch import (
    FullBatches,
    count_rows,
    find_divisors,
    find_largest_fitting,
    fit_micro_batch,
    with_micro_batch,
)
from training.run.session import run_training

CPU = torch.device("cpu")
ALONE = World("python", rank=0, local_rank=0, size=1, local_size=1)


def test_divisors():
    assert find_divisors(12) == [12, 6, 4, 3, 2, 1]
    assert find_divisors(1) == [1]


@pytest.mark.parametrize("rows", [1, 7, 12, 64])
@pytest.mark.parametrize("budget", [0, 105, 110, 140, 10_000])
def test_largest_fitting_against_trying_all(rows, budget):
    fitting = [size for size in find_divisors(rows) if 100 + 5 * size <= budget]
    assert find_largest_fitting(lambda size: 100 + 5 * size, rows, budget) == max(fitting, default=1)


def test_rows_of_a_step_stay():
    loaded = load_config(["--per_device_train_batch_size", "6", "--gradient_accumulation_steps", "4"])
    chosen = with_micro_batch(loaded, 8)
    assert chosen.config.argument("per_device_train_batch_size") == 8
    assert chosen.config.argument("gradient_accumulation_steps") == 3
    assert count_rows(chosen.config) == count_rows(loaded.config) == 24


@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_trial_batches_are_full_and_masked(packing):
    batch = next(FullBatches(Collator(0, 16, 8, packing, varlen=False), rows=3, vocabulary=50, device=CPU))
    assert batch["input_ids"].shape == (3, 16)
    if packing == "none":
        assert batch["attention_mask"].sum() == 3 * 16 - 1
    else:
        assert (batch["position_ids"] == 0).sum() == 6


def fit(monkeypatch, *, planned: int, fits: Any) -> tuple[int, list[int]]:
    """The size chosen of 24 rows, and those tried."""
    tried = []

    def try_training(loaded, *args):
        tried.append(loaded.config.argument("per_device_train_batch_size"))
        return fits(tried[-1])

    planner = SimpleNamespace(
        predict_peak=lambda size, accumulates: size,
        estimate_evaluation=lambda: Evaluation(rows=4, device_peak=5, allowances=0),
    )
    monkeypatch.setattr(micro_batch, "Planner", lambda *_, **__: planner)
    monkeypatch.setattr(micro_batch, "measure_free_bytes", lambda *_: planned)
    monkeypatch.setattr(micro_batch, "try_training", try_training)
    loaded = load_config(["--per_device_train_batch_size", "6", "--gradient_accumulation_steps", "4"])
    chosen = fit_micro_batch(loaded, None, ALONE, CPU)  # pyright: ignore[reportArgumentType]
    return int(chosen.config.argument("per_device_train_batch_size")), tried


def test_an_evaluation_that_does_not_fit_is_said(monkeypatch, caplog):
    for planned, said in ((5, False), (4, True)):
        caplog.clear()
        fit(monkeypatch, planned=planned, fits=lambda size: True)
        assert ("evaluation of 4 rows is planned to take" in caplog.text) == said


def test_what_runs_out_of_memory_is_tried_smaller(monkeypatch):
    assert fit(monkeypatch, planned=13, fits=lambda size: True) == (12, [12])
    assert fit(monkeypatch, planned=13, fits=lambda size: size < 5) == (4, [12, 8, 6, 4])
    with pytest.raises(UserError, match=r"perf\.micro_batch_size: not even one row fits"):
        fit(monkeypatch, planned=2, fits=lambda size: False)


RECIPE = """
model:
  kind: minigpt
  config: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2,
           num_key_value_heads: 1, head_dim: 16, attention_dropout: 0.1}
tokenizer: {vocab_size: 400}
data: {sources: [{path: embedded, max_documents: 6}], store_dir: STORES, seq_len: 64, num_proc: 1, validation_share: 0}
training:
  max_steps: 3
  eval_strategy: "no"
  save_strategy: "no"
  use_cpu: true
monitor: {train_every: 1, plot_every: 0}
perf: {enabled: false}
checkpoint: {verify_final: false}
"""


def test_a_trial_leaves_no_trace(tmp_path, monkeypatch):
    """Chosen 2 of 4 rows after the trial of 4 ran out of memory, with dropout on: the run trains
    bit for bit what it trains with 2 x 2 written in the recipe."""
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("STORES", str(tmp_path / "stores")))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    threads, next_batch = torch.get_num_threads(), micro_batch.FullBatches.__next__
    sizes = []

    def full_batch(self):
        sizes.append(self.rows)
        if self.rows == 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes.")
        return next_batch(self)

    monkeypatch.setattr(micro_batch.FullBatches, "__next__", full_batch)

    def train(name: str, *argv: str) -> Path:
        run = tmp_path / name
        loaded = load_config(["--config", str(tmp_path / "recipe.yaml"), f"training.output_dir={run}", *argv])
        run_training(loaded, ALONE)
        return run

    chosen = train("chosen", "perf.micro_batch_size=auto", "--batch_size=1", "--gradient_accumulation_steps=4")
    assert sizes == [4, *[2] * 4]
    written = train("written", "--batch_size=2", "--gradient_accumulation_steps=2")
    torch.set_num_threads(threads)
    ours, theirs = (load_file(run / "final" / "model.safetensors") for run in (chosen, written))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    lines = [json.loads(line) for run in (chosen, written) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses[:3] == losses[3:] and np.isfinite(losses).all()
    assert "per_device_train_batch_size: 2" in (chosen / "config.yaml").read_text()
    plan = json.loads((written / "summary.json").read_text())["memory_plan"]
    assert plan["predicted_gib"] > 0 and (plan["measured_gib"] or plan["note"])
