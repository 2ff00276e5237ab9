"""One object for each precision: what the rest of the project asks it."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from training import precision
from training.benchmark.advise.levers import Baseline, list_variants
from training.config import load_config
from training.precision import PRECISIONS, compute_float32, find_precision, list_switches, speed_up_float32


@pytest.mark.parametrize(
    ("arguments", "dtype", "short_name", "peak", "peak_with_tf32"),
    [
        ({"bf16": True, "fp16": False}, torch.bfloat16, "bf16", "bfloat16", "bfloat16"),
        ({"bf16": False, "fp16": True}, torch.float16, "fp16", "float16", "float16"),
        ({"bf16": False}, torch.float32, "no", "float32", "tfloat32"),
    ],
)
def test_what_arguments_choose(arguments, dtype, short_name, peak, peak_with_tf32):
    found = find_precision(arguments)
    assert (found.dtype, found.short_name) == (dtype, short_name)
    assert (found.peak_format(tf32=False), found.peak_format(tf32=True)) == (peak, peak_with_tf32)


def test_training_arguments_and_a_recipe_choose_alike(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, bf16=True)
    config = load_config(["--config", "debug", "--bf16", "true"]).config
    assert find_precision(vars(args)) is find_precision(config.arguments()) is PRECISIONS[0]


def test_only_float16_needs_a_gpu_and_a_scaled_loss():
    assert [(one.name, one.obstacle("cpu")) for one in PRECISIONS if one.obstacle("cpu")] == [
        ("float16", "float16 needs a GPU, and this run is on a CPU")
    ]
    assert [one.name for one in PRECISIONS if one.scales_loss] == ["float16"]
    assert all(one.obstacle("cuda") is None for one in PRECISIONS)


def test_rounding_is_that_of_the_mantissa():
    """Half a unit in the last place of 1: TF32 has the ten bits of float16."""
    assert [one.rounding for one in PRECISIONS[:2]] == [torch.finfo(one.dtype).eps / 2 for one in PRECISIONS[:2]]
    assert PRECISIONS[2].rounding == PRECISIONS[1].rounding


def test_a_new_precision_is_checked_and_advised_without_another_line(monkeypatch):
    made_up = replace(PRECISIONS[0], name="float64", switch="fp64")
    monkeypatch.setattr(precision, "PRECISIONS", (made_up, *PRECISIONS))
    assert list_switches() == ("fp64", "bf16", "fp16")
    assert find_precision({"fp64": True}).dtype is torch.float64
    base = Baseline(load_config(["--config", "debug"]), 1, "cpu", 1)
    variants = {one.label: one.recipe for one in list_variants(base, ["precision"])[0]}
    assert variants["float64"] == {"training.fp64": True, "training.bf16": False, "training.fp16": False}


def test_it_is_known_before_torch():
    code = "import sys, training.precision; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_float32_products_are_left_alone_where_onednn_would_round_them(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        assert speed_up_float32().startswith(("by oneDNN, exact", "as torch has them"))
        torch.set_float32_matmul_precision("highest")
        monkeypatch.setattr(precision, "FLOAT32_ERROR", 0.0)  # as if every product were rounded
        assert speed_up_float32().startswith("as torch has them: oneDNN would round them")
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("asked", "bf16", "device_type", "is_said"),
    [
        ("auto", False, "cpu", True),
        ("torch", False, "cpu", False),
        ("auto", True, "cpu", False),
        ("auto", False, "cuda", False),
    ],
)
def test_float32_products_change_for_a_run_that_needs_it_and_no_longer(
    asked: str, bf16: bool, device_type: str, is_said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    before = torch.get_float32_matmul_precision()
    with caplog.at_level("INFO", logger="redline.launch"), compute_float32(asked, {"bf16": bf16}, device_type):
        assert any("float32 products: " in message for message in caplog.messages) == is_said
        assert is_said or torch.get_float32_matmul_precision() == before
    assert torch.get_float32_matmul_precision() == before
