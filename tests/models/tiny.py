"""Models small enough for a CPU test, and `build_model` for sections given as dicts."""

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from training.attention.kernels import Compute
from training.config.sections import AdapterSection, ModelSection
from training.models.build import build_model
from training.models.minigpt import MiniGPTConfig, MiniGPTForCausalLM
from training.models.scratch import TokenizerFacts

VOCAB_SIZE = 128
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


CHAT_WORDS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "\n",
    "user",
    "assistant",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message.role }} {{ message.content }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def chat_tokenizer(template: str | None = CHAT_TEMPLATE) -> Any:
    """Words of CHAT_WORDS by their place in it, the first six special, then w9 to w127; eos and pad are number 0."""
    words = [*CHAT_WORDS, *(f"w{number}" for number in range(len(CHAT_WORDS), VOCAB_SIZE))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="w9"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=words[0], pad_token=words[0])
    tokenizer.add_special_tokens({"extra_special_tokens": words[1:6]})
    tokenizer.chat_template = template
    return tokenizer


def tiny_minigpt(**fields: Any) -> Any:
    """A `MiniGPTForCausalLM`; Any, since type checkers know neither `generate` nor submodules of HF models."""
    torch.manual_seed(0)
    return MiniGPTForCausalLM(MiniGPTConfig(**(SHAPE | fields)))


def build_tiny(model: dict[str, Any], adapter: dict[str, Any] | None = None, **overrides: Any) -> Any:
    """`build_model` for a recipe's sections given as dicts, on CPU in float32."""
    tokenizer = TokenizerFacts(overrides.pop("vocab_size", VOCAB_SIZE), 0, 1, 2)
    compute = Compute("cpu", overrides.pop("dtype", torch.float32), packed=True)
    torch.manual_seed(0)
    return build_model(ModelSection(**model), AdapterSection(**(adapter or {})), tokenizer, compute, **overrides)


def generate_greedily(model: Any, batch: dict[str, Any], cache: str | bool | None) -> torch.Tensor:
    """Twelve tokens after `batch`, with the usual cache (None), one of another kind, or none (False)."""
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    settings |= {"use_cache": False} if cache is False else {"cache_implementation": cache} if cache else {}
    return model.eval().generate(**batch, **settings)
