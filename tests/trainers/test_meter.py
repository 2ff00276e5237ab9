"""The meter of a training: the rates of its machine, and what counts its batches."""

import logging
from typing import Any

import pytest
from transformers import Qwen2Config, Qwen2ForCausalLM, TrainingArguments

from training.metrics import names
from training.metrics.calibration import Calibrator
from training.metrics.peaks import Peak
from training.trainers.meter import build_meter


@pytest.fixture
def model(tmp_path, monkeypatch) -> Qwen2ForCausalLM:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
        )  # fmt: skip
    )


def build_args(path: Any, **options: Any) -> TrainingArguments:
    return TrainingArguments(output_dir=str(path), use_cpu=True, report_to=[], **options)


def test_a_recipe_knows_the_rate_of_its_own_matmuls(model, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="redline.build"):
        meter = build_meter(model, build_args(tmp_path, per_device_train_batch_size=2), seq_len=16)
    assert meter.peak and meter.ceiling
    assert meter.peak.tflops >= meter.ceiling.tflops > 0 and meter.peak.source == "measured"
    assert (tmp_path / "redline" / "matmuls.json").exists()
    (line,) = caplog.messages
    assert f"{meter.peak.tflops:.2f} TFLOP/s" in line and f"alone reach {meter.ceiling.tflops:.3g}" in line
    meter.add([16, 10], rows=2, tokens=32, useful_tokens=26, loss_tokens=24)
    assert meter.last_batch_flops > 0


def test_matmuls_of_the_model_that_exceed_the_machine_raise_its_rate(model, tmp_path, monkeypatch):
    faster = Peak(1e6, "measured", "this", "float32", 1.0)
    monkeypatch.setattr(Calibrator, "find_model_ceiling", lambda *args: faster)
    assert build_meter(model, build_args(tmp_path), seq_len=16).peak == faster
    later = build_meter(model, build_args(tmp_path)).peak  # of another model
    assert later and later.tflops == faster.tflops


def test_without_a_recipe_forward_passes_count_the_flops(model, tmp_path):
    meter = build_meter(model, build_args(tmp_path))
    assert meter.peak and meter.ceiling is None
    meter.add([16], rows=1, tokens=16, useful_tokens=16, loss_tokens=15)
    assert meter.last_batch_flops == 0


def test_the_number_format_of_the_training_is_measured(model, tmp_path):
    formats = [build_meter(model, build_args(tmp_path, bf16=bf16)).peak for bf16 in (False, True)]
    assert [peak.dtype if peak else None for peak in formats] == ["float32", "bfloat16"]


def test_time_is_measured_by_phase(model, tmp_path):
    meter = build_meter(model, build_args(tmp_path))
    meter.timer.start()
    with meter.timer.span(names.FORWARD):
        pass
    meter.end_step()
    assert meter.window()[names.phase_key(names.FORWARD)] > 0
