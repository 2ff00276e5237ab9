"""Lengths of the documents that attention keeps apart, from what any batch of a Hugging Face model holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

CU_SEQ_LENS = ("cu_seq_lens_q", "cu_seqlens", "cu_seq_lens")


def find_document_lengths(
    rows: int,
    seq_len: int,
    *,
    cu_seq_lens: NDArray[np.int64] | None = None,
    position_ids: NDArray[np.int64] | None = None,
    attention_mask: NDArray[np.int64] | None = None,
) -> list[int]:
    """Tokens of each document in a batch of `rows` x `seq_len`, padding left out.

    The first of these that is given decides:

    1. cu_seq_lens (documents + 1,): cumulative lengths, as FlashAttention's variable-length kernels take them;
    2. position_ids (rows or 1, seq_len): a document begins where a position does not follow the one before it;
       attention_mask leaves out padding among them;
    3. attention_mask (rows, seq_len): one document a row, of the positions that are not 0;
    4. nothing: one document a row, of all its positions.

    An array of another shape is taken for something else and is not used (a 4-D mask, 3-D positions of images).
    """
    if cu_seq_lens is not None and cu_seq_lens.ndim == 1 and len(cu_seq_lens) > 1:
        lengths = np.diff(cu_seq_lens)
        return lengths[lengths > 0].tolist()
    mask = attention_mask != 0 if attention_mask is not None and attention_mask.shape == (rows, seq_len) else None
    if position_ids is not None and position_ids.shape in ((rows, seq_len), (1, seq_len)):
        return _split_at_restarts(np.broadcast_to(position_ids, (rows, seq_len)), mask)
    if mask is not None:
        lengths = mask.sum(axis=1)
        return lengths[lengths > 0].tolist()
    return [seq_len] * rows


def _split_at_restarts(positions: NDArray[np.int64], mask: NDArray[np.bool_] | None) -> list[int]:
    begins = np.ones(positions.shape, dtype=bool)
    begins[:, 1:] = positions[:, 1:] != positions[:, :-1] + 1
    if mask is not None:
        begins[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    kept = np.ones(positions.size, dtype=bool) if mask is None else mask.ravel()
    document = np.cumsum(begins.ravel()) - 1
    lengths = np.bincount(document[kept])
    return lengths[lengths > 0].tolist()


class BatchShape:
    """Rows, positions and documents of one forward pass, read from its arguments without waiting for a device.

    Small tensors that say where documents are come to the host by an asynchronous copy; `document_lengths` may be asked
    for once the work queued so far is done.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """Raises KeyError when the arguments hold no tokens."""
        tokens = arguments.get("input_ids")
        if tokens is None:
            tokens = arguments["inputs_embeds"]
        self.rows, self.seq_len = int(tokens.shape[0]), int(tokens.shape[1])
        self._cu_seq_lens = _to_host(next((arguments[key] for key in CU_SEQ_LENS if key in arguments), None))
        self._position_ids = _to_host(arguments.get("position_ids"))
        self._attention_mask = _to_host(arguments.get("attention_mask"))

    def document_lengths(self) -> list[int]:
        """See `find_document_lengths`."""
        return find_document_lengths(
            self.rows,
            self.seq_len,
            cu_seq_lens=_as_array(self._cu_seq_lens),
            position_ids=_as_array(self._position_ids),
            attention_mask=_as_array(self._attention_mask),
        )


def _to_host(value: Any) -> torch.Tensor | None:
    """None for what is no small integer tensor. A tensor on the host is cloned: the batch may be reused."""
    if not isinstance(value, torch.Tensor) or value.dim() > 2 or value.is_floating_point():
        return None
    return value.detach().to("cpu", torch.int64, non_blocking=True, copy=True)


def _as_array(value: torch.Tensor | None) -> NDArray[np.int64] | None:
    return None if value is None else value.numpy()
