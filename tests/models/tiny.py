"""Models small enough for a CPU test, and `build_model` for sections given as dicts."""

from typing import Any

import torch

from training.config.sections import AdapterSection, ModelSection
from training.models.build import build_model
from training.models.minigpt import MiniGPTConfig, MiniGPTForCausalLM

VOCAB_SIZE = 128
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def tiny_minigpt(**fields: Any) -> Any:
    """A `MiniGPTForCausalLM`; Any, since type checkers know neither `generate` nor submodules of HF models."""
    torch.manual_seed(0)
    return MiniGPTForCausalLM(MiniGPTConfig(**(SHAPE | fields)))


def build_tiny(model: dict[str, Any], adapter: dict[str, Any] | None = None, **overrides: Any) -> Any:
    """`build_model` for a recipe's sections given as dicts, on CPU in float32."""
    arguments: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "device_type": "cpu",
        "dtype": torch.float32,
        "packed": True,
    }
    torch.manual_seed(0)
    return build_model(ModelSection(**model), AdapterSection(**(adapter or {})), **(arguments | overrides))
