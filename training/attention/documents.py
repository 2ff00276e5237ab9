"""Where the documents of a batch lie, for attention that is given no mask: on the CPU, where nobody waits for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

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
    return _documents.get((rows, tokens), sources, lambda: _find(rows, tokens, *sources))


Answer = TypeVar("Answer")


class LastAnswer(Generic[Answer]):
    """What was found last, given once more for the same tensors unchanged: the layers of a pass share one answer."""

    def __init__(self) -> None:
        self._asked: tuple[Any, ...] = ()
        self._sources: tuple[Tensor | None, ...] = ()
        self._answer: Any = None

    def get(self, key: tuple[int, ...], sources: tuple[Tensor | None, ...], find: Callable[[], Answer]) -> Answer:
        """What `find` gives for `sources` and `key`. Without a tensor, or while a graph is traced, it is asked."""
        if torch.compiler.is_compiling() or all(source is None for source in sources):
            return find()  # a fake tensor might be the answer to a real question
        asked = (key, *map(_find_version, sources))  # a buffer may hold the next batch by now
        is_same = asked == self._asked and all(
            mine is other for mine, other in zip(self._sources, sources, strict=True)
        )
        if not is_same:
            self._asked, self._sources, self._answer = asked, sources, find()
        return self._answer


def _find_version(source: Tensor | None) -> int | None:
    return None if source is None or source.is_inference() else source._version


_documents: LastAnswer[Documents] = LastAnswer()


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
