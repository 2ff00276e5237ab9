"""What our attention functions share: they are given no mask of tokens x tokens, and few calls need one after all.

Calls that no kernel of ours computes (attention dropout, keys that were cached, queries that see later keys) go to
PyTorch's SDPA, under a mask that is made of the documents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from transformers import masking_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from training.kernels.cpu.functions import Documents

# Their mask functions read no `position_ids`: FlashAttention's because it takes boundaries, ours likewise.
_UNSEARCHED = {"flash_attention_2", "flash_attention_3", "flash_attention_4"}


def computes_itself(module: Any, queries: int, keys: int, mask: Tensor | None, settings: dict[str, Any]) -> bool:
    """Whether our kernels compute this call: causal, of a whole batch, with a mask of padding at most."""
    is_plain = not settings.get("dropout") and settings.get("softcap") is None and settings.get("position_bias") is None
    return is_causal(module, settings) and is_plain and queries == keys and (mask is None or mask.dim() == 2)


def is_causal(module: Any, settings: dict[str, Any]) -> bool:
    """Whether a query of this call sees no later key."""
    asked = settings.get("is_causal")
    return bool(getattr(module, "is_causal", True) if asked is None else asked)


def attend_masked(
    module: Any,
    inputs: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
    settings: dict[str, Any],
    find: Callable[[], Documents],
) -> tuple[Tensor, None]:
    """By SDPA: query, key, value (rows, heads, tokens, dim) to (rows, tokens, heads, dim). find: the documents, on the
    device of the inputs."""
    query, key, value = inputs
    rows, _, tokens, _ = query.shape
    if key.shape[2] == tokens and (mask is None or mask.dim() != 4):
        if isinstance(query, FakeTensor):
            mask = query.new_empty((rows, 1, tokens, tokens), dtype=torch.bool)
        else:
            window = settings.get("sliding_window") or 0
            mask = spread(find(), rows, tokens, window, is_causal=is_causal(module, settings))
    return sdpa_attention_forward(module, query, key, value, mask, **settings)


def spread(documents: Documents, rows: int, tokens: int, window: int = 0, *, is_causal: bool = True) -> Tensor:
    """Which keys each query sees, (rows, 1, tokens, tokens) of bool. A token of no document sees itself."""
    starts = documents.starts
    place = torch.arange(rows * tokens, device=starts.device)
    number = torch.searchsorted(starts, place, right=True) - 1  # of several that start here, those before are empty
    nearest = number.clamp(min=0)
    inside = (number >= 0) & (place < starts[nearest] + documents.lengths[nearest])
    owner = torch.where(inside, number, -1).view(rows, 1, tokens)
    place = place[:tokens]
    distance = place[:, None] - place[None, :]
    seen = (owner.unsqueeze(-1) == owner.unsqueeze(-2)) & (owner.unsqueeze(-1) >= 0)
    if is_causal:
        seen &= distance >= 0
    if window:
        seen &= distance < window
    return seen | (distance == 0)


def register(name: str, attend: Callable[..., Any], build_square: Callable[..., Tensor | None]) -> None:
    """Have transformers call `attend` for `attn_implementation: name`. build_square: a mask function of transformers
    for as many keys as queries, which gives padding (rows, tokens) or nothing; with cached keys SDPA's is taken."""

    def build_mask(**arguments: Any) -> Tensor | None:
        if arguments["q_length"] == arguments["kv_length"]:
            return build_square(**arguments)
        return sdpa_mask(**arguments)

    ALL_ATTENTION_FUNCTIONS.register(name, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, build_mask)
    _UNSEARCHED.add(name)


def _leave_positions_alone() -> None:
    """transformers looks for documents in `position_ids` before it asks for any mask, and waits for the device to know
    whether there are several: once or twice in each forward pass, for nothing where the mask function reads none."""
    prepare = masking_utils._preprocess_mask_arguments

    def prepare_without(
        config: Any, embeds: Tensor, mask: Any, past: Any, positions: Any, *rest: Any, **named: Any
    ) -> Any:
        positions = None if config._attn_implementation in _UNSEARCHED else positions
        return prepare(config, embeds, mask, past, positions, *rest, **named)

    masking_utils._preprocess_mask_arguments = prepare_without


_leave_positions_alone()
