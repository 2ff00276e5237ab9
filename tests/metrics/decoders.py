"""Tiny decoders of several architectures, ways to train them, and batches, for counting FLOPs and memory."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from training.models.minigpt import MiniGPTConfig

SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "use_cache": False,
    "pad_token_id": 0,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "decoder_sparse_step": 1,
}
GPT2 = {
    "vocab_size": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "n_embd": 32,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 128,
    "attn_pdrop": 0.0,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "minigpt": MiniGPTConfig(**SHAPE),
    "minigpt_gelu": MiniGPTConfig(**SHAPE, hidden_act="gelu", tie_word_embeddings=False),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen2_tied": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16),
    "llama": LlamaConfig(**SHAPE),
    "mistral": MistralConfig(**SHAPE, sliding_window=12),
    "gemma": GemmaConfig(**SHAPE, head_dim=8),
    "gemma2": Gemma2Config(**SHAPE, head_dim=8, sliding_window=12),
    "gpt2": GPT2Config(**GPT2, resid_pdrop=0.0, embd_pdrop=0.0, use_cache=False),
    "gpt2_dropout": GPT2Config(**GPT2, resid_pdrop=0.1, embd_pdrop=0.1, use_cache=False),
    "qwen2_moe": Qwen2MoeConfig(**SHAPE, **EXPERTS, shared_expert_intermediate_size=40),
    "qwen3_moe": Qwen3MoeConfig(**SHAPE, **{**EXPERTS, "head_dim": 8}),
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
}
EAGER = ("gemma2", "minigpt_gelu")  # Gemma 2 caps its scores, which SDPA cannot; the other: to have eager twice
LORA_TARGETS = {
    "lora": "all-linear",
    "lora_mlp": ["gate_proj", "up_proj", "down_proj", "c_fc"],
    "lora_vo": ["v_proj", "o_proj", "c_proj"],
    "dora": "all-linear",
}


def build_decoder(architecture: str, method: str = "full", device: str = "cpu") -> Any:
    """A model in training mode; `method`: full, frozen_lower_half, head_only or a key of LORA_TARGETS."""
    torch.manual_seed(0)
    with torch.device(device):
        attention = "eager" if architecture in EAGER else "sdpa"
        model: Any = AutoModelForCausalLM.from_config(CONFIGS[architecture], attn_implementation=attention)
    if method in LORA_TARGETS:
        dora = method == "dora"
        lora = LoraConfig(
            r=4, target_modules=LORA_TARGETS[method], use_dora=dora, lora_dropout=0.1 * dora, task_type="CAUSAL_LM"
        )
        model = get_peft_model(model, lora)
    elif method != "full":
        freeze(model, method)
    return model.train()


def freeze(model: nn.Module, method: str) -> None:
    below = ("embed_tokens", "wte", "wpe", ".0.", ".1.")
    for name, parameter in model.named_parameters():
        frozen = any(part in name for part in below) if method == "frozen_lower_half" else "lm_head" not in name
        parameter.requires_grad_(not frozen)


@dataclass
class Batch:
    """2 rows of 32 tokens; `alone` runs the model on each document by itself."""

    inputs: dict[str, torch.Tensor]
    document_lengths: list[int]
    rows: int = 2
    tokens: int = 64

    def step(self, model: nn.Module) -> None:
        model(**self.inputs, labels=self.inputs["input_ids"]).loss.backward()

    def alone(self, model: nn.Module) -> None:
        for length in self.document_lengths:
            ids = torch.ones(1, length, dtype=torch.long)
            model(input_ids=ids, labels=ids).loss.backward()


def build_batch(kind: str) -> Batch:
    ids = torch.randint(1, 96, (2, 32))
    if kind == "whole":
        return Batch({"input_ids": ids}, [32, 32])
    if kind == "padded":
        mask = torch.ones(2, 32, dtype=torch.long)
        mask[0, 20:] = 0
        return Batch({"input_ids": ids, "attention_mask": mask}, [20, 32])
    positions = torch.cat([torch.arange(n) for n in (10, 22, 32)]).view(2, 32)
    return Batch({"input_ids": ids, "position_ids": positions}, [10, 22, 32])
