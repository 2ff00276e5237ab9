"""Compiled modules of a model, in place: `state_dict` keeps its names, and hooks and wrappers see the same modules.

Dynamo compiles a graph again when an argument has a shape, or a value, that its graph was not made for. What varies
from batch to batch is therefore settled before the call:

| argument | what is done |
|---|---|
| length of padded rows | marked as dynamic: one graph for all lengths |
| rows of a batch under `data.max_tokens_per_batch` | marked as dynamic; one row alone runs uncompiled |
| any other shape than the recipe's | runs uncompiled |
| attention mask that is absent because no row needs one (SDPA) | made: the causal mask |
| `cu_seq_lens_q`, `cu_seq_lens_k` | their length is marked as dynamic |
| `max_length_q`, `max_length_k` | the length of a row, which bounds them |
| `num_items_in_batch` | left out: the loss alone needs it |

A pass without gradients (evaluation, checks, generated text) runs uncompiled, as does one under a dispatch mode,
such as a FLOP counter: compiled kernels are no operators that it could count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils._pytree import tree_leaves

from data_prep.errors import UserError

LENGTHS = ("max_length_q", "max_length_k")
BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k")
DROPPED = ("num_items_in_batch",)
MASK_DIMS = 4


@dataclass(frozen=True)
class BatchShapes:
    """The micro-batches of a training: (rows, seq_len) in tokens."""

    rows: int
    seq_len: int
    varies_length: bool = False
    """Rows are padded to the longest of their batch."""
    varies_rows: bool = False
    """A batch has as many rows as fit; `rows` has no meaning."""

    def covers(self, rows: int, length: int) -> bool:
        """Whether the graph of the training is made for this batch."""
        fits_rows = rows > 1 if self.varies_rows else rows == self.rows
        return fits_rows and (length > 1 if self.varies_length else length == self.seq_len)


class CompiledCall:
    """Takes the place of a module's call from `install` on.

    module: its first argument, or `input_ids`, is (rows, seq_len, …). attention: the name of its attention kernel.
    """

    def __init__(self, module: nn.Module, shapes: BatchShapes, attention: str) -> None:
        self._module = module
        self._shapes = shapes
        self._attention = attention
        self._compiled: Any = torch.compile(module._call_impl)

    def install(self) -> None:
        """Have the module called through this object. `nn.Module.compile` puts its own there; copies do not keep it."""
        self._module._compiled_call_impl = self.call

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output. Raises UserError when torch's compiler fails."""
        first = args[0] if args else kwargs.get("hidden_states", kwargs.get("input_ids"))
        if first is None or not self._is_compiled_here(first):
            return self._module._call_impl(*args, **kwargs)
        kwargs = self._settle(first, kwargs)
        rows, length = first.shape[:2]
        for tensor in _list_tensors(args, kwargs):
            self._mark(tensor, rows, length)
        for name in BOUNDS:
            if isinstance(bounds := kwargs.get(name), Tensor):
                torch._dynamo.maybe_mark_dynamic(bounds, 0)
        from torch._dynamo.exc import BackendCompilerFailed  # loaded by now; a run that compiles nothing never loads it

        try:
            return self._compiled(*args, **kwargs)
        except BackendCompilerFailed as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"perf.compile: torch's compiler failed ({reason}): use 'off'") from error

    def _is_compiled_here(self, first: Tensor) -> bool:
        rows, length = first.shape[:2]
        return torch.is_grad_enabled() and self._shapes.covers(rows, length) and not is_in_torch_dispatch_mode()

    def _settle(self, first: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments that are the same for every batch, where they can be."""
        settled = {name: value for name, value in kwargs.items() if name not in DROPPED}
        rows, length = first.shape[:2]
        settled |= {name: length for name in LENGTHS if isinstance(settled.get(name), int)}
        if "attention_mask" in settled and settled["attention_mask"] is None:
            settled["attention_mask"] = self._make_mask(first, rows, length)
        return settled

    def _make_mask(self, first: Tensor, rows: int, length: int) -> Tensor | None:
        if not first.is_floating_point():  # tokens: the model makes the mask of its layers
            return first.new_ones(first.shape) if self._shapes.varies_length else None
        if self._attention != "sdpa":
            return None
        return first.new_ones((rows, 1, length, length), dtype=torch.bool).tril()

    def _mark(self, tensor: Tensor, rows: int, length: int) -> None:
        if self._shapes.varies_length:
            for dim in (2, 3) if tensor.dim() == MASK_DIMS else (1,):
                if dim < tensor.dim() and tensor.shape[dim] == length:
                    torch._dynamo.maybe_mark_dynamic(tensor, dim)
        if self._shapes.varies_rows and tensor.dim() > 1 and tensor.shape[0] == rows:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)


def _list_tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
