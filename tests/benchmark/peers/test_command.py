"""`peers` from its command line to its page: with stand-ins for its runs, and once for real."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_prep.errors import UserError
from training.benchmark.isolation import Outcome
from training.benchmark.page import look_at_machine
from training.benchmark.peers.command import MODELS, main
from training.benchmark.peers.reading import Measurement
from training.benchmark.peers.report import format_page
from training.benchmark.peers.running import SituationResult, count_palm_flops
from training.benchmark.peers.sides import SIDES
from training.benchmark.peers.situations import SITUATIONS
from training.metrics.peaks import Peak

TINY = {
    "model": {"config": {
        "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True, "max_position_embeddings": 64,
    }},
    "tokenizer": {"vocab_size": 512, "sample_bytes": 200_000},
}  # fmt: skip


class StandIn:
    """Runs nothing: Redline has 2,000 tokens/s, the stock Trainer 1,000 and another loss in float32, TRL fails."""

    def __init__(self):
        self.calls = []

    def __call__(self, side, run):
        self.calls.append((run.situation.name, side.name))
        if side.name == "trl":
            raise UserError("trl-1 failed with exit code 1")
        rate = 2000.0 if side.name == "redline" else 1000.0
        one = Measurement(rate, 2e6 / rate, 5.0, 2e3 / rate)
        return replace(one, loss=5.1) if side.name == "stock_float32" else one


def run_nothing(function: Any, *args: Any, watch: bool = False) -> Outcome[Any]:
    return Outcome(Path("tokenizer"))


@pytest.fixture
def measured(tmp_path, monkeypatch):
    monkeypatch.setattr("training.benchmark.peers.inputs.write_texts", lambda settings: None)
    monkeypatch.setattr("training.benchmark.peers.running.find_device_peak", lambda: None)

    def measure(*argv):
        stand_in = StandIn()
        places = ["--work_dir", str(tmp_path / "work"), "--out", str(tmp_path / "page.md")]
        code = main([*argv, *places], run_nothing, stand_in)
        page = tmp_path / "page.md"
        return code, stand_in.calls, page.read_text() if page.exists() else ""

    return measure


def find_row(page: str, side: str) -> list[str]:
    line = next(line for line in page.splitlines() if line.startswith(f"| {side} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_has_ratios_losses_and_reasons(measured, capsys):
    sides = ["redline", "stock_float32", "stock_bf16", "trl", "nanogpt"]
    code, calls, page = measured("--sides", *sides, "--situations", "pretrain", "chat", "--rounds", "6")
    assert code == 0
    assert [calls.count(("pretrain", name)) for name in sides] == [6, 6, 6, 1, 0]
    assert find_row(page, "redline")[1:5] == [
        "2,000 (2,000 to 2,000)",
        "",
        "1.00 (1.00 to 1.00)",
        "1,000 (1,000 to 1,000)",
    ]
    assert find_row(page, "stock_bf16")[2:6] == [
        "2.000 (2.000 to 2.000)", "2.00 (2.00 to 2.00)", "2,000 (2,000 to 2,000)", "5.0000 (+0.00 %)",
    ]  # fmt: skip
    assert find_row(page, "stock_float32")[5] == "5.1000 (**not equal: +2.00 %**)"
    assert find_row(page, "trl")[1] == "not measured: trl-1 failed with exit code 1"
    assert find_row(page, "nanogpt")[1] == "not measured: no --nanogpt CHECKOUT was given"
    assert page.count("not measured: no --chat FILE.jsonl was given") == 2
    assert "6 rounds; an interval covers the median with 97 %." in page
    assert "Command: `python -m training.benchmark peers --sides redline" in page
    captured = capsys.readouterr()
    assert "warning: pretrain, stock_float32: its loss differs by +2.00 %" in captured.err
    assert "| redline | 2,000" in captured.out


def test_less_memory_is_a_ratio_above_1(measured):
    _, _, page = measured("--sides", "redline", "stock_bf16", "--situations", "vocabulary", "--rounds", "2")
    assert find_row(page, "stock_bf16")[1:3] == ["2.00 (2.00 to 2.00)", "2.000 (2.000 to 2.000)"]


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["--sides", "trl"], "--sides: redline is the base of all ratios"),
        (["--rounds", "0"], "--rounds 0: name 1 or more"),
        (["--steps", "12"], "--steps 12: name a multiple of 5, 10 or more"),
        (["--steps", "5"], "--steps 5: name a multiple of 5, 10 or more"),
        (["--nanogpt", "/no/such"], "--nanogpt /no/such: it does not exist"),
        (["--model", "m3"], "--model m3: name one of m1, m2, 124m, 0.5b, 1.5b, or the path of a recipe"),
    ],
)
def test_what_cannot_be_measured_is_refused(measured, capsys, argv, error):
    code, calls, page = measured(*argv)
    assert (code, calls, page) == (2, [], "")
    assert error in capsys.readouterr().err


def test_presets_have_the_sizes_they_say():
    from torch import device
    from transformers import AutoConfig, AutoModelForCausalLM

    for name, millions in (("m1", 31), ("m2", 11), ("124m", 124), ("0.5b", 494), ("1.5b", 1544)):
        vocab_size, shape = MODELS[name]
        config = AutoConfig.for_model("qwen2", tie_word_embeddings=True, **{"vocab_size": vocab_size, **shape})
        with device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        assert round(model.num_parameters() / 1e6) == millions


def test_mfu_is_in_palm_s_convention():
    shape = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 4, "vocab_size": 10, "parameters": 1000}
    tied = count_palm_flops({**shape, "tie_word_embeddings": True}, 16)
    assert tied == 6 * 1000 + 12 * 2 * 8 * 16
    assert count_palm_flops({**shape, "tie_word_embeddings": False, "head_dim": 3}, 16) == 6 * 920 + 12 * 2 * 12 * 16
    peak = Peak(2.0, "datasheet", "a GPU", "bfloat16", document="its datasheet")
    runs = [Measurement(tokens_per_second=1e8, step_ms=1.0, loss=2.0, peak_gib=3.0)] * 2
    result = SituationResult(SITUATIONS[0], {"redline": runs}, {"trl": "no"}, flops_per_token=tied, peak=peak)
    page = format_page([result], look_at_machine("command", ()))
    assert find_row(page, "redline")[4] == "45.4 (45.4 to 45.4)"  # 1e8 x 9072 of 2e12
    assert find_row(page, "side")[4] == "MFU, %" and len(find_row(page, "trl")) == len(find_row(page, "side"))
    assert "MFU is in PaLM's convention over 2 TFLOP/s (its datasheet)." in page


def test_redline_and_the_stock_trainer_for_real(tmp_path, monkeypatch):
    """Both read the same rows from the same weights, so they end with the same loss."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(TINY))
    places = ["--work_dir", str(tmp_path / "work"), "--out", str(tmp_path / "page.md")]
    sizes = ["--model", str(recipe), "--rounds", "2", "--steps", "10", "--seq_len", "32", "--batch", "2"]
    sides = ["--sides", "redline", "stock_bf16", "--situations", "pretrain"]
    assert main([*sides, *sizes, *places]) == 0
    (result,) = json.loads((tmp_path / "page.json").read_text())["situations"]
    redline, stock = result["measured"]["redline"], result["measured"]["stock_bf16"]
    assert len(redline) == len(stock) == 2 and not result["not measured"]
    for one, other in zip(redline, stock, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert all(
            run["tokens_per_second"] > 0 and run["peak_gib"] > 0.1 and run["step_ms"] > 0 for run in (one, other)
        )
    assert not (tmp_path / "work" / "pretrain" / "redline-1" / "run" / "final").exists()


def test_names_are_unique_and_situations_exist():
    names = [side.name for side in SIDES]
    assert len(set(names)) == len(names) and names[0] == "redline"
    assert {name for side in SIDES for name in side.situations} == {one.name for one in SITUATIONS}
    assert all(side.what for side in SIDES) and sys.executable
