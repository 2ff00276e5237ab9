"""What is asked of Liger, whose kernels run on a GPU (`tests/gpu/test_liger.py`): a module of its shape notes it."""

from __future__ import annotations

import importlib.util
import logging
import sys
from types import ModuleType
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config

from data_prep.errors import UserError
from tests.models.tiny import SHAPE, tiny_minigpt
from training.config import load_config
from training.models.fused import fuse_layers

PACKAGE = "liger_kernel"


def install(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = importlib.util.spec_from_loader(name, loader=None)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Arguments that Liger was called with."""
    calls: list[dict[str, Any]] = []
    install(monkeypatch, PACKAGE)
    install(monkeypatch, f"{PACKAGE}.transformers", _apply_liger_kernel_to_instance=lambda **given: calls.append(given))
    install(monkeypatch, f"{PACKAGE}.transformers.monkey_patch", MODEL_TYPE_TO_APPLY_LIGER_FN={"qwen2": None})
    return calls


def build_qwen2() -> Any:
    return AutoModelForCausalLM.from_config(Qwen2Config(**SHAPE))


def test_layers_on_cuda_are_liger_s_without_its_loss(asked: list[Any], caplog: pytest.LogCaptureFixture):
    model = build_qwen2()
    adapted = get_peft_model(build_qwen2(), LoraConfig(target_modules=["q_proj"]))
    with caplog.at_level(logging.INFO):
        fuse_layers(model, "auto", device_type="cuda", partitioned=True)
        fuse_layers(adapted, "on", device_type="cuda")
    without_loss = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    assert asked == [{"model": one, **without_loss} for one in (model, adapted.get_base_model())]
    assert caplog.messages == ["layers: by Liger (RMSNorm, RoPE, SwiGLU)"] * 2


def test_what_liger_does_not_do_is_said(asked: list[Any], caplog: pytest.LogCaptureFixture):
    with pytest.raises(UserError, match="perf.fused_layers: on is not possible: Liger has no kernels for minigpt"):
        fuse_layers(tiny_minigpt(), "on", device_type="cuda")
    with caplog.at_level(logging.INFO):
        fuse_layers(build_qwen2(), "auto", device_type="cuda", is_compiled=True)
    fuse_layers(build_qwen2(), "off", device_type="cuda")
    assert caplog.messages == ["layers: as the model has them (they are compiled)"]
    assert asked == []


@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is not None, reason="Liger is installed")
def test_without_liger_the_layers_stay(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        fuse_layers(build_qwen2(), "auto", device_type="cuda")
    install_it = "pip install -r requirements-gpu.txt"
    assert caplog.messages == [f"layers: as the model has them (Liger is not installed ({install_it}))"]


@pytest.mark.parametrize(
    ("key", "message"),
    [("perf.fused_layers=on", "Liger's kernels for layers"), ("perf.loss_kernel=chunked", "the second chooses")],
)
def test_the_trainer_s_own_switch_is_not_joined_by_another(asked: list[Any], key: str, message: str):
    with pytest.raises(UserError, match=message):
        load_config(["--use_liger_kernel", "model.path=x", key])
    load_config(["--use_liger_kernel", "model.path=x", "perf.loss_kernel=plain"])
