"""Where the documents of a batch lie, for attention that is given no mask: on the CPU, where nobody waits for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from training.kernels.cpu.functions import Documents


def find_documents(rows: int, tokens: int, mask: Tensor | None, batch: dict[str, Any]) -> Documents:
    """The documents of `rows` rows of `tokens` tokens.

    From `cu_seq_lens_q` of the batch (boundaries, (documents + 1,)), else from a mask (rows, tokens) of what is real,
    else from `position_ids` (rows, tokens) that start again at 0; without any of them each row is one. Asked with the
    same tensors once more, as each layer does, it gives the answer it has.
    Raises ValueError for a mask with a gap.
    """
    sources = (batch.get("cu_seq_lens_q"), mask, batch.get("position_ids"))
    if _last is not None and _last.suits(rows, tokens, sources):
        return _last.documents
    found = _find(rows, tokens, *sources)
    if any(source is not None for source in sources):  # else a fake tensor might be the answer to a real question
        _remember(_Answer(rows, tokens, sources, tuple(map(_find_version, sources)), found))
    return found


@dataclass(frozen=True)
class _Answer:
    rows: int
    tokens: int
    sources: tuple[Tensor | None, ...]
    versions: tuple[int | None, ...]
    documents: Documents

    def suits(self, rows: int, tokens: int, sources: tuple[Tensor | None, ...]) -> bool:
        same = all(mine is other for mine, other in zip(self.sources, sources, strict=True))
        return (
            same
            and (self.rows, self.tokens) == (rows, tokens)
            and self.versions == tuple(map(_find_version, sources))  # a buffer may hold the next batch by now
        )


def _find_version(source: Tensor | None) -> int | None:
    return None if source is None or source.is_inference() else source._version


_last: _Answer | None = None


def _remember(answer: _Answer) -> None:
    global _last
    _last = answer


def _find(rows: int, tokens: int, bounds: Any, mask: Tensor | None, positions: Any) -> Documents:
    if isinstance(bounds, Tensor) and not isinstance(bounds, FakeTensor):
        return Documents(bounds[:-1].long(), bounds.diff().long())
    if mask is not None and not isinstance(mask, FakeTensor):
        real = mask[:, -tokens:].bool()
        firsts, lengths = real.int().argmax(1), real.sum(1)
        place = torch.arange(tokens) - firsts[:, None]
        if not torch.equal(real, (place >= 0) & (place < lengths[:, None])):
            raise ValueError(
                "attention_mask: a row has padding between its tokens, and redline_cpu attends to one stretch of it: "
                "set model.attn_implementation: sdpa, or move the padding to an end"
            )
        return Documents(torch.arange(rows) * tokens + firsts, lengths)
    if isinstance(positions, Tensor) and not isinstance(positions, FakeTensor):
        starts = positions.expand(rows, tokens) == 0
        starts = starts.clone()
        starts[:, 0] = True
        firsts = starts.flatten().nonzero().squeeze(1)
        ends = torch.cat((firsts[1:], firsts.new_tensor([rows * tokens])))
        return Documents(firsts, ends - firsts)
    return Documents(torch.arange(rows) * tokens, torch.full((rows,), tokens))
