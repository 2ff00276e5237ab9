"""A model with Liger's kernels trains as without. Skipped, with the reason, without a GPU or Liger."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from training.models.fused import fuse_layers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="Liger is not installed"),
]

SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def test_losses_and_gradients_are_those_of_the_stock_layers():
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(Qwen2Config(**SHAPE)).cuda().train()
    ids = torch.randint(0, 512, (2, 256), device="cuda")

    def run() -> tuple[float, torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        return loss.item(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    loss, gradient = run()  # before Liger: its RoPE stays in the file of transformers
    fuse_layers(model, "on", device_type="cuda")
    by_liger, gradient_by_liger = run()
    assert by_liger == pytest.approx(loss, rel=2e-3)
    assert float((gradient_by_liger - gradient).norm() / gradient.norm()) < 0.02
