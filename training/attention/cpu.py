"""Our CPU attention under the name that transformers calls it by: no mask, no work across documents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import flash_attention_mask

from training.attention.documents import find_documents
from training.attention.unmasked import attend_masked, computes_itself, register
from training.kernels.cpu.functions import AttentionTerms, attend

NAME = "redline_cpu"


def attend_documents(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """An attention function of transformers: query (rows, heads, tokens, dim) to (rows, tokens, heads, dim)."""
    rows, _, tokens, dim = query.shape
    if not computes_itself(module, tokens, key.shape[2], attention_mask, settings):
        inputs = (query, key, value)
        return attend_masked(
            module, inputs, attention_mask, settings, lambda: find_documents(rows, tokens, attention_mask, settings)
        )
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (x.to(torch.get_autocast_dtype("cpu")) for x in (query, key, value))
    terms = find_terms(rows, tokens, dim, attention_mask, settings)
    out = attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), terms)
    return out, None


def find_terms(rows: int, tokens: int, dim: int, mask: Tensor | None, settings: dict[str, Any]) -> AttentionTerms:
    """What attention computes in a call."""
    scale = settings.get("scaling")
    documents = find_documents(rows, tokens, mask, settings)
    return AttentionTerms(documents, dim**-0.5 if scale is None else float(scale), settings.get("sliding_window") or 0)


register(NAME, attend_documents, flash_attention_mask)
