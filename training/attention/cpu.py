"""Our CPU attention under the name that transformers calls it by: no mask, no work across documents.

Where keys were cached (generation), attention is dropped out, or is not causal, PyTorch's SDPA computes instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from training.attention.documents import find_documents
from training.kernels.cpu.functions import AttentionTerms, Documents, attend

NAME = "redline_cpu"


def attend_documents(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """An attention function of transformers: query (rows, heads, tokens, dim) to (rows, tokens, heads, dim)."""
    if not computes_itself(module, query.shape[2], key.shape[2], attention_mask, settings):
        mask = _fill_mask(module, query, key, attention_mask, settings)
        return sdpa_attention_forward(module, query, key, value, mask, **settings)
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (x.to(torch.get_autocast_dtype("cpu")) for x in (query, key, value))
    terms = find_terms(module, query.shape[0], query.shape[2], query.shape[-1], attention_mask, settings)
    out = attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), terms)
    return out, None


def computes_itself(module: Any, queries: int, keys: int, mask: Tensor | None, settings: dict[str, Any]) -> bool:
    """Whether our kernel computes this call: causal, of a whole batch, with a mask of padding at most."""
    is_plain = not settings.get("dropout") and settings.get("softcap") is None and settings.get("position_bias") is None
    return is_causal(module, settings) and is_plain and queries == keys and (mask is None or mask.dim() == 2)


def is_causal(module: Any, settings: dict[str, Any]) -> bool:
    """Whether a query of this call sees no later key."""
    asked = settings.get("is_causal")
    return bool(getattr(module, "is_causal", True) if asked is None else asked)


def find_terms(
    module: Any, rows: int, tokens: int, dim: int, mask: Tensor | None, settings: dict[str, Any]
) -> AttentionTerms:
    """What attention computes in this call of `module`."""
    scale = settings.get("scaling")
    documents = find_documents(rows, tokens, mask, settings)
    return AttentionTerms(documents, dim**-0.5 if scale is None else float(scale), settings.get("sliding_window") or 0)


def build_mask(**arguments: Any) -> Tensor | None:
    """A mask function of transformers: padding (rows, tokens) or nothing; with cached keys as SDPA has it."""
    if arguments["q_length"] == arguments["kv_length"]:
        return flash_attention_mask(**arguments)
    return sdpa_mask(**arguments)


def _fill_mask(module: Any, query: Tensor, key: Tensor, mask: Tensor | None, settings: dict[str, Any]) -> Tensor | None:
    """The mask that SDPA needs where ours was left out, (rows, 1, tokens, tokens)."""
    rows, _, tokens, _ = query.shape
    if key.shape[2] != tokens or (mask is not None and mask.dim() == 4):
        return mask
    if isinstance(query, FakeTensor):
        return query.new_empty((rows, 1, tokens, tokens), dtype=torch.bool)
    documents = find_documents(rows, tokens, mask, settings)
    return spread(documents, rows, tokens, settings.get("sliding_window") or 0, is_causal=is_causal(module, settings))


def spread(documents: Documents, rows: int, tokens: int, window: int = 0, *, is_causal: bool = True) -> Tensor:
    """Which keys each query sees, (rows, 1, tokens, tokens) of bool. A token of no document sees itself."""
    owner = torch.full((rows * tokens,), -1)
    for number, (start, length) in enumerate(zip(documents.starts.tolist(), documents.lengths.tolist(), strict=True)):
        owner[start : start + length] = number
    owner = owner.view(rows, 1, tokens)
    place = torch.arange(tokens)
    distance = place[:, None] - place[None, :]
    seen = (owner.unsqueeze(-1) == owner.unsqueeze(-2)) & (owner.unsqueeze(-1) >= 0)
    if is_causal:
        seen &= distance >= 0
    if window:
        seen &= distance < window
    return seen | (distance == 0)


ALL_ATTENTION_FUNCTIONS.register(NAME, attend_documents)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, build_mask)
