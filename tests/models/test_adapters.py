"""LoRA and QLoRA: only adapters move, what is saved comes back, the share is counted in true elements."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from data_prep.errors import UserError
from tests.models.tiny import SHAPE, build_tiny
from training.activations.modes import FULL, OFF
from training.export import export
from training.models.adapters import TrainableShare, trainable_share

LORA = {"method": "lora", "r": 4, "dropout": 0.0}
QLORA = LORA | {"load_in_4bit": True}


def train(model: Any, token_ids: torch.Tensor, steps: int = 1) -> list[float]:
    """Losses before each of `steps` steps of SGD on one batch, and after the last."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    losses = []
    for _ in range(steps):
        loss = model.train()(input_ids=token_ids, labels=token_ids).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return [*losses, model(input_ids=token_ids, labels=token_ids).loss.item()]


def logits(model: Any, token_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=token_ids).logits


@pytest.mark.parametrize("fixture", ["qwen_dir", "minigpt_dir"])
@pytest.mark.parametrize("adapter", [LORA, LORA | {"dora": True}, LORA | {"rslora": True}, QLORA], ids=str)
def test_a_step_changes_adapters_only_and_lowers_the_loss(
    fixture: str, adapter: dict[str, Any], request: pytest.FixtureRequest, token_ids: torch.Tensor
) -> None:
    model = build_tiny({"path": str(request.getfixturevalue(fixture))}, adapter)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    losses = train(model, token_ids)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed and all("lora_" in name for name in changed)
    assert any("layers.0.self_attn.q_proj.lora_B" in name for name in changed)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("adapter", [LORA, QLORA], ids=["lora", "qlora"])
def test_saved_adapters_come_back(
    adapter: dict[str, Any], minigpt_dir: Path, tmp_path: Path, token_ids: torch.Tensor
) -> None:
    model = build_tiny({"path": str(minigpt_dir)}, adapter)
    train(model, token_ids)
    model.save_pretrained(tmp_path)
    base: Any = build_tiny({"path": str(minigpt_dir)}, adapter).get_base_model()
    if adapter is LORA:
        base = AutoModelForCausalLM.from_pretrained(minigpt_dir)
        loaded: Any = PeftModel.from_pretrained(base, str(tmp_path))
    else:
        loaded = build_tiny({"path": str(minigpt_dir)}, adapter)
        loaded.load_adapter(str(tmp_path), "default")
    torch.testing.assert_close(logits(loaded, token_ids), logits(model, token_ids), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("fixture", ["qwen_dir", "minigpt_dir"])
def test_merged_model_equals_base_and_adapter(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path, token_ids: torch.Tensor
) -> None:
    model = build_tiny({"path": str(request.getfixturevalue(fixture))}, LORA)
    train(model, token_ids, steps=3)
    model.save_pretrained(tmp_path / "adapter")
    export(tmp_path / "adapter", tmp_path / "merged", "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged, token_ids), logits(model, token_ids), atol=1e-5, rtol=1e-5)


def test_merging_a_4bit_adapter_on_the_command_line_uses_the_unquantised_base(
    minigpt_dir: Path, tmp_path: Path, token_ids: torch.Tensor
) -> None:
    model = build_tiny({"path": str(minigpt_dir)}, QLORA)
    train(model, token_ids, steps=3)
    model.save_pretrained(tmp_path / "adapter")
    command = [sys.executable, "-m", "training.export", "adapter", "merged", "--format", "merged"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(minigpt_dir)
    expected = logits(PeftModel.from_pretrained(base, str(tmp_path / "adapter")), token_ids)
    torch.testing.assert_close(logits(merged, token_ids), expected, atol=1e-5, rtol=1e-5)
    assert not hasattr(merged.config, "quantization_config")


def test_an_evaluation_leaves_4bit_gradients_as_they_were(qwen_dir: Path, token_ids: torch.Tensor) -> None:
    """bitsandbytes repacks weights in eval mode on AVX512-BF16 CPUs, after which no gradient passes through them."""
    model = build_tiny({"path": str(qwen_dir)}, QLORA, dtype=torch.bfloat16)
    gradients = []
    for _ in range(2):
        model.train()(input_ids=token_ids, labels=token_ids).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
        logits(model, token_ids)
    assert len(gradients[0]) == 2 * 2 * 7  # A and B of seven linear layers in each of two blocks
    torch.testing.assert_close(gradients[1], gradients[0], atol=0, rtol=0)


@pytest.mark.parametrize("adapter", [LORA, QLORA], ids=["lora", "qlora"])
def test_checkpointing_leaves_adapter_gradients_equal(
    adapter: dict[str, Any], qwen_dir: Path, token_ids: torch.Tensor
) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = build_tiny({"path": str(qwen_dir)}, adapter, checkpointing=FULL if checkpointing else OFF)
        model.train()(input_ids=token_ids, labels=token_ids).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert all(gradient is not None for gradient in gradients[1].values())
    torch.testing.assert_close(gradients[0], gradients[1], atol=0, rtol=0)


def test_share_counts_4bit_weights_as_what_they_stand_for(qwen_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    full = trainable_share(build_tiny({"path": str(qwen_dir)}))
    assert full.trainable == full.total
    with caplog.at_level("INFO", logger="redline.models"):
        shares = [trainable_share(build_tiny({"path": str(qwen_dir)}, adapter)) for adapter in (LORA, QLORA)]
    width, kv, mlp = 64, 32, 96
    per_block = 4 * (2 * (width + width) + 2 * (width + kv) + 3 * (width + mlp))  # r (in + out), q o, k v, MLP
    assert shares == [TrainableShare(2 * per_block, full.total + 2 * per_block)] * 2
    assert str(shares[0]) in caplog.text


def test_the_line_for_the_screen() -> None:
    assert str(TrainableShare(1_234_567, 9_876_536)) == "trainable parameters: 1,234,567 of 9,876,536 (12.50 %)"


def test_targets_as_a_list_and_as_a_pattern(qwen_dir: Path) -> None:
    for targets in (["q_proj", "v_proj"], r".*\.(q|v)_proj"):
        model = build_tiny({"path": str(qwen_dir)}, LORA | {"target_modules": targets})
        adapted = {name.split(".")[-2] for name, _ in model.named_modules() if name.endswith(".lora_A")}
        assert adapted == {"q_proj", "v_proj"}


@pytest.mark.parametrize("targets", [["q_proj", "w_proj"], ".*w_proj"])
def test_an_unknown_target_is_refused_with_the_names_there_are(qwen_dir: Path, targets: list[str] | str) -> None:
    with pytest.raises(UserError, match=r"w_proj.*linear layers here: down_proj, gate_proj, k_proj, lm_head, o_proj"):
        build_tiny({"path": str(qwen_dir)}, LORA | {"target_modules": targets})


def test_lora_on_random_weights_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    build_tiny({"config": SHAPE}, LORA)
    assert "its random base is frozen and not saved" in caplog.text
