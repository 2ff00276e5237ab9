"""Models and batches to compare attention functions on: packed, padded, with a window, with grouped heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, MistralConfig, Qwen2Config

SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,  # of 12, which the kernel pads
    "num_key_value_heads": 2,
}
CONFIGS: dict[str, Any] = {
    "qwen2": Qwen2Config(**SHAPE),
    "qwen2 with a window": Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "mistral with a window": MistralConfig(**SHAPE, sliding_window=6),
}


def build_model(name: str, implementation: str) -> Any:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=implementation)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def make_batch(kind: str) -> dict[str, Any]:
    ids = torch.randint(1, 96, (2, 30), generator=torch.Generator().manual_seed(0))
    batch: dict[str, Any] = {"input_ids": ids, "labels": ids}
    positions = torch.cat([torch.arange(n) for n in (11, 1, 18, 9, 21)]).view(2, 30)
    if kind == "boundaries":
        bounds = torch.tensor([0, 11, 12, 30, 39, 60], dtype=torch.int32)
        return batch | {"position_ids": positions, "cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
    if kind == "positions":
        return batch | {"position_ids": positions}
    if kind == "whole":
        return batch
    mask = torch.ones_like(ids)
    mask[1, slice(-9, None) if kind == "padded right" else slice(9)] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[1, 9] = -100  # padding on the left would have to predict it: eager attention gives it a mean, ours zeros
    return batch | {"attention_mask": mask, "labels": labels}


def run(model: Any, batch: dict[str, Any]) -> tuple[float, list[Tensor]]:
    loss = model.train()(**batch, use_cache=False).loss
    loss.backward()
    return loss.item(), [parameter.grad for parameter in model.parameters()]
