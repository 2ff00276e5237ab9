"""Which implementation is chosen on machines that this one only pretends to be."""

import dataclasses
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from data_prep.errors import UserError
from tests.models.tiny import tiny_minigpt
from training.models import attention
from training.models.attention import choose_attention, takes_varlen

CUDA_BF16: dict[str, Any] = {"device_type": "cuda", "dtype": torch.bfloat16, "packed": True}
CPU: dict[str, Any] = {"device_type": "cpu", "dtype": torch.bfloat16, "packed": False}


def pretend(monkeypatch: pytest.MonkeyPatch, installed: set[str], capability: tuple[int, int]) -> None:
    for name, package in attention.FLASH_PACKAGES.items():
        available = dataclasses.replace(package, is_available=lambda name=name: name in installed)
        monkeypatch.setitem(attention.FLASH_PACKAGES, name, available)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)


@pytest.mark.parametrize(
    ("installed", "capability", "expected"),
    [
        ({"flash_attention_2", "flash_attention_3"}, (9, 0), "flash_attention_3"),
        ({"flash_attention_2"}, (9, 0), "flash_attention_2"),
        ({"flash_attention_2", "flash_attention_3"}, (10, 0), "flash_attention_2"),  # Blackwell: 3 has no kernels
        ({"flash_attention_2", "flash_attention_3"}, (7, 5), "sdpa"),
        (set(), (9, 0), "sdpa"),
    ],
)
def test_auto_takes_the_best_that_fits(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], capability: tuple[int, int], expected: str
) -> None:
    pretend(monkeypatch, installed, capability)
    assert choose_attention("auto", **CUDA_BF16)[0] == expected


def test_auto_in_float32_or_on_a_cpu_is_sdpa_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(monkeypatch, {"flash_attention_2", "flash_attention_3"}, (9, 0))
    with caplog.at_level("INFO", logger="redline.models"):
        implementation, reason = choose_attention("auto", **dict(CUDA_BF16, dtype=torch.float32))
        assert implementation == "sdpa" and "this run in float32" in reason
        implementation, reason = choose_attention("auto", **CPU)
        assert implementation == "sdpa" and "this run is on cpu" in reason
    assert caplog.messages[-1] == f"attention: sdpa ({reason})"


def test_reason_names_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, set(), (9, 0))
    reason = choose_attention("auto", **CUDA_BF16)[1]
    assert "no flash_attention_2: not installed (pip install -r requirements-gpu.txt)" in reason
    assert "seq_len x seq_len" in reason


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_explicit_plain_ones_always_work(name: str) -> None:
    assert choose_attention(name, **CPU) == (name, "asked for")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("flash_attention_2", CUDA_BF16, "not installed .pip install -r requirements-gpu.txt"),
        ("flash_attention_2", CPU, "needs a CUDA device and this run is on cpu"),
        ("flash_attention_4", CUDA_BF16, "not installed .pip install flash-attn-4"),
        ("flex_attention", CPU, "no backward pass outside CUDA"),
        ("spda", CPU, "did you mean 'sdpa'"),
        ("zzz", CPU, "unknown, one of auto, eager"),
    ],
)
def test_explicit_ones_that_cannot_run_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, settings: dict, message: str
) -> None:
    pretend(monkeypatch, set(), (9, 0))
    with pytest.raises(UserError, match=message):
        choose_attention(name, **settings)


def test_only_models_that_hand_arguments_on_get_the_boundaries_of_documents():
    class Plain(torch.nn.Module):
        def forward(self, input_ids, position_ids=None):
            return input_ids

    model = tiny_minigpt()
    assert takes_varlen(model) and takes_varlen(get_peft_model(model, LoraConfig(target_modules=["q_proj"])))
    assert not takes_varlen(Plain())
