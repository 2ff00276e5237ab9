"""PyTorch's own FlashAttention for documents of any length, under the name that transformers calls it by.

`torch.nn.attention.varlen` needs no other package. Boundaries of documents come with the batch; a mask of padding is
turned into some on the device. Nothing here waits for the device. Rows that are one document each go to SDPA, which
needs no boundaries and takes cuDNN first on GPUs of compute capability 9.0 and 10.0 (`check_prefer_cudnn_attention` in
PyTorch's sdp_utils.cpp), FlashAttention elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from training.attention.documents import LastAnswer
from training.attention.unmasked import attend_masked, computes_itself, is_causal, register
from training.kernels.cpu.functions import Documents

NAME = "torch_varlen"
DTYPES = (torch.float16, torch.bfloat16)
DIM_UNIT = 8  # head sizes that its kernels compute are multiples, up to
WIDEST = 256


@dataclass(frozen=True)
class Boundaries:
    """Where the documents of a batch end when its rows lie end to end, on the device, 0 first: (documents + 1,) int32.
    Each token is in one, padding too; documents may be empty. longest: tokens, at least those of the longest."""

    ends: Tensor
    longest: int

    def as_documents(self) -> Documents:
        """The same as starts and lengths, on the device."""
        return Documents(self.ends[:-1].long(), self.ends.diff().long())


def attend_documents(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """An attention function of transformers: query (rows, heads, tokens, dim) to (rows, tokens, heads, dim)."""
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (x.to(dtype) for x in (query, key, value))
    rows, _, tokens, dim = query.shape
    window = settings.get("sliding_window") or 0
    is_square = tokens == key.shape[2] and (attention_mask is None or attention_mask.dim() == 2)
    given = find_boundaries(rows, tokens, attention_mask, settings) if is_square else None
    if is_square and given is None and is_causal(module, settings) and not 0 < window < tokens:
        return sdpa_attention_forward(module, query, key, value, None, **settings)

    def find() -> Boundaries:
        return given or _bound_rows(rows, tokens, query.device)

    if not (computes_itself(module, tokens, key.shape[2], attention_mask, settings) and suits(query, value)):
        inputs = (query, key, value)
        return attend_masked(module, inputs, attention_mask, settings, lambda: find().as_documents())
    scale = settings.get("scaling")
    bounds = find()
    out = varlen_attn(
        *_in_line(query, key, value), bounds.ends, bounds.ends, bounds.longest, bounds.longest,
        scale=dim**-0.5 if scale is None else float(scale),
        window_size=(window - 1 if window else -1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out[..., : value.shape[-1]].unflatten(0, (rows, tokens)), None


def suits(query: Tensor, value: Tensor) -> bool:
    """Whether the kernel computes inputs of this device, dtype and head size."""
    is_narrow = max(query.shape[-1], value.shape[-1]) <= WIDEST
    return query.device.type == "cuda" and query.dtype in DTYPES and is_narrow


def find_boundaries(rows: int, tokens: int, mask: Tensor | None, batch: dict[str, Any]) -> Boundaries | None:
    """The documents of `rows` rows of `tokens` tokens; None: each row is one. Does not wait for the device.

    From `cu_seq_lens_q` and `max_length_q` of the batch, else from a mask (rows, tokens) of what is real: what is real
    of a row is one document, and the padding before and after it one each. A device that finds a gap in a mask, or
    positions that start again where no boundaries are given, fails (`torch._assert_async`).
    """
    ends = batch.get("cu_seq_lens_q")
    if isinstance(ends, Tensor):
        longest = batch.get("max_length_q")
        return Boundaries(ends.int(), longest if isinstance(longest, int) else tokens)
    if mask is not None:
        return _padding.get((rows, tokens), (mask,), lambda: Boundaries(_bound_padding(mask[:, -tokens:]), tokens))
    positions = batch.get("position_ids")
    if isinstance(positions, Tensor) and positions.dim() == 2:
        _positions.get((rows, tokens), (positions,), lambda: _check_positions(positions))
    return None


_padding: LastAnswer[Boundaries] = LastAnswer()
_positions: LastAnswer[None] = LastAnswer()


def _bound_padding(real: Tensor) -> Tensor:
    real = real.bool()
    rows, tokens = real.shape
    place = torch.arange(tokens, device=real.device)
    firsts, lengths = real.int().argmax(1, keepdim=True), real.sum(1, keepdim=True)
    is_one = (real == ((place >= firsts) & (place < firsts + lengths))).all()
    torch._assert_async(
        is_one,
        f"attention_mask: a row has padding between its tokens, and {NAME} attends to one stretch of it: set "
        "model.attn_implementation: sdpa, or move the padding to an end",
    )
    ends = torch.cat((firsts, firsts + lengths, torch.full_like(firsts, tokens)), 1)
    ends = ends + torch.arange(rows, device=real.device)[:, None] * tokens
    return pad(ends.flatten(), (1, 0)).int()


def _check_positions(positions: Tensor) -> None:
    torch._assert_async(
        (positions[:, 1:] > positions[:, :-1]).all(),
        f"position_ids start again within a row, and the batch has no cu_seq_lens_q: {NAME} would take the documents "
        "of a row for one: set model.attn_implementation: sdpa",
    )


def _bound_rows(rows: int, tokens: int, device: torch.device) -> Boundaries:
    return Boundaries(torch.arange(0, (rows + 1) * tokens, tokens, dtype=torch.int32, device=device), tokens)


def _in_line(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows end to end, (rows x tokens, heads, dim), all of one head size that the kernel has."""
    widest = -(-max(query.shape[-1], value.shape[-1]) // DIM_UNIT) * DIM_UNIT

    def lay(x: Tensor) -> Tensor:
        x = x.transpose(1, 2).flatten(0, 1)
        x = pad(x, (0, widest - x.shape[-1])) if x.shape[-1] < widest else x
        return x if x.stride(-1) == 1 else x.contiguous()

    return lay(query), lay(key), lay(value)


def _keep_padding(attention_mask: Tensor | None = None, *, kv_length: int, **arguments: Any) -> Tensor | None:
    """That of the keys at hand. Whether there is any at all would have to be waited for."""
    return None if attention_mask is None else attention_mask[:, -kv_length:]


register(NAME, attend_documents, _keep_padding)
