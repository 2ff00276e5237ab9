"""Letting a causal language model write: prompts as token ids in, what it wrote out, to the token that stops it.

Several prompts are padded on the left, since the next token comes after the last one. What stops a model is
`generation_config.eos_token_id`, which `final/` has from its training (`stop_tokens`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .saved_files import find_generation_config


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. `temperature` 0 takes the likeliest; `top_k` 0 and `top_p` 1 leave none out."""

    max_new_tokens: int = 128
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 1.0
    seed: int = 0

    def to_options(self) -> dict[str, Any]:
        """As `generate` of transformers takes them."""
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "do_sample": self.temperature > 0}
        if self.temperature > 0:
            options |= {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return options


@dataclass(frozen=True)
class Written:
    """New token ids, the one that stopped it included; `stopped`: whether there was one before the limit."""

    ids: list[int]
    stopped: bool


def find_stops(model: Any) -> list[int]:
    """Ids that end what `model` writes."""
    stops = getattr(find_generation_config(model), "eos_token_id", None)
    return [] if stops is None else list(stops) if isinstance(stops, (list, tuple)) else [stops]


def count_free_positions(model: Any, length: int) -> int | None:
    """Tokens that fit after a prompt of `length`; None where the model says no limit."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return None if positions is None else max(0, positions - length)


def render_prompt(tokenizer: Any, messages: list[dict[str, Any]]) -> list[int]:
    """Ids of a conversation that the assistant continues, by the tokenizer's chat template."""
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False))


def write(model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, streamer: Any = None) -> list[Written]:
    """What `model` writes after each of `prompts`, all at once. A streamer gets the ids of one prompt as they come."""
    stops = find_stops(model)
    padding = stops[0] if stops else 0  # under an attention mask: any id will do
    longest = max(map(len, prompts))
    rows = [[padding] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    device = next(model.parameters()).device
    torch.manual_seed(sampling.seed)
    with torch.no_grad():
        output = model.generate(
            input_ids=torch.tensor(rows, device=device),
            attention_mask=torch.tensor(mask, device=device),
            pad_token_id=padding,
            streamer=streamer,
            **sampling.to_options(),
        )
    return [_cut(ids, stops) for ids in output[:, longest:].tolist()]


def _cut(ids: list[int], stops: list[int]) -> Written:
    end = next((place for place, token in enumerate(ids) if token in stops), None)
    return Written(ids, False) if end is None else Written(ids[: end + 1], True)
