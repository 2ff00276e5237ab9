"""Peak memory of a forward and backward pass, traced on fake tensors: no weights, no device, a few seconds.

The real model runs, operator by operator, under torch's `FakeTensorMode`: every operator gets the shapes, dtypes and
autograd behaviour of the real one, and no data. A dispatch mode adds the bytes of each new storage when an operator
makes it and takes them off when autograd lets it go, so the peak holds saved activations, autocast's weight copies,
logits, loss temporaries and gradients in their true order; checkpointing recomputes as in the run. Parameters are not
in it: they are counted in `states.py`.

A trace takes a second or, with adapters on many layers, ten. What lives after each operator is a constant and a share
of the micro-batch, so two traced sizes give all others: the peak of a third is the highest of so many straight lines.

What is not real: attention kernels, which have stand-ins (`training/attention/stand_ins.py`). Autocast follows the
CPU's operator list. Kernels' own workspaces and the allocator's rounding are not seen: `estimate.py` allows for them.
"""

from __future__ import annotations

import weakref
from array import array
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from training.activations.modes import OFF, Checkpointing
from training.attention.stand_ins import StandIn


@dataclass(frozen=True)
class Reduction:
    """How ZeRO takes gradients away as backward makes them, in bytes (`DeepSpeedZeroOptimizer`, stages 1 to 3).

    A gradient is copied into a bucket and let go of; a full bucket is flattened once more to be reduced, and what is
    this rank's goes into `partition`. A gradient larger than a bucket waits for the next one on its own.
    """

    bucket: int
    num_buckets: int
    """Made with the first gradient (stages 1 and 2), two when communication overlaps; 0: there from the start."""
    partition: int
    """Made with the first gradient; 0: there from the start, or on the host."""


@dataclass(frozen=True)
class StepShape:
    """One micro-batch and how it is computed. `autocast`: the dtype of autocast, None without."""

    micro_batch_size: int
    seq_len: int
    attention: StandIn
    autocast: torch.dtype | None
    checkpointing: Checkpointing
    accumulates: bool
    """Gradients of an earlier micro-batch are there already."""
    keeps_gradients: bool
    """False: of an earlier micro-batch a rank has its partition only (ZeRO-2/3), which is not traced."""
    reduction: Reduction | None = None


@dataclass(frozen=True)
class StepTrace:
    """Bytes beyond the parameters. `peak` is all that lives at the worst moment; the others say what it consists of."""

    peak: int
    after_forward: int
    """What the backward pass was left: activations, autocast copies (and gradients, when accumulating)."""
    layer: int
    """Activations that one decoder layer keeps: its input only if it is computed again; the mean where some are."""
    logits: int
    """Peak minus what lived when the head began: logits, their copies, the loss and its gradient."""


@dataclass(frozen=True)
class _Timeline:
    """One traced step. live (n,) int64: bytes after each storage that an operator made; others as in `StepTrace`."""

    size: int
    live: np.ndarray
    after_forward: int
    layer: int
    head_start: int

    def as_trace(self) -> StepTrace:
        peak = int(self.live.max())
        return StepTrace(peak, self.after_forward, self.layer, peak - self.head_start)

    def draw_line(self, other: _Timeline, size: int) -> _Timeline | None:
        """The step of another micro-batch size, from two; None where they differ in their operators, as some do that
        copy nothing for a single row."""
        if len(self.live) != len(other.live):
            return None
        share = (size - self.size) / (other.size - self.size)

        def between(a: Any, b: Any) -> Any:
            return a + np.rint((b - a) * share).astype(np.int64)

        names = ("after_forward", "layer", "head_start")
        marks = (int(between(getattr(self, name), getattr(other, name))) for name in names)
        return _Timeline(size, between(self.live, other.live), *marks)


class StepTracer:
    """Traces micro-batches of one model.

    `model` comes on the meta device and is taken over: its parameters become fake. 4-bit weights cannot run without a
    device: give the model unquantised, its activations are the same.
    """

    def __init__(self, model: nn.Module, *, on_gpu: bool = False) -> None:
        self._traced: dict[StepShape, list[_Timeline]] = {}  # by shape, without its micro-batch size
        self._model = model
        self._checkpointing = OFF
        self._on_gpu = on_gpu
        self._fakes = FakeTensorMode()
        with self._fakes:
            model._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device="cpu"))
            getattr(model, "tie_weights", lambda: None)()  # _apply made two of a tied one
        model.train()

    def trace(self, shape: StepShape) -> StepTrace:
        """Peak of one forward and backward, in bytes beyond the parameters."""
        size = shape.micro_batch_size
        known = self._traced.setdefault(replace(shape, micro_batch_size=0), [])
        for timeline in known:
            if timeline.size == size:
                return timeline.as_trace()
        for one, other in combinations(known, 2):
            if drawn := one.draw_line(other, size):
                return drawn.as_trace()
        known.append(self._run(shape))
        return known[-1].as_trace()

    def _run(self, shape: StepShape) -> _Timeline:
        self._set_checkpointing(shape.checkpointing)
        trained = [p for p in self._model.parameters() if p.requires_grad]
        reducer = _Reducer(shape.reduction) if shape.reduction else None
        hooks = [p.register_post_accumulate_grad_hook(reducer) for p in trained] if reducer else []
        live = _LiveBytes()
        attention = _PlannedAttention(self._model, shape.attention, on_gpu=self._on_gpu)
        with self._fakes, attention, live, _Marks(self._model, live) as marks:
            ids = torch.zeros(shape.micro_batch_size, shape.seq_len, dtype=torch.long)
            if shape.accumulates and shape.keeps_gradients:
                for parameter in trained:
                    parameter.grad = torch.zeros_like(parameter)
            mask = _build_mask(shape)
            if not shape.checkpointing.every:  # which keeps the inputs of every layer, the mask among them
                marks.until_head, mask = mask, None
            loss = _forward(self._model, ids, shape)
            after_forward = live.now
            loss.backward()
            del loss
            if reducer:
                reducer.flush()
        for hook in hooks:
            hook.remove()
        for parameter in trained:
            parameter.grad = None
        timeline = np.array(live.timeline, dtype=np.int64)
        return _Timeline(shape.micro_batch_size, timeline, after_forward, marks.layer_bytes(), marks.head_start)

    def trace_evaluation(self, shape: StepShape) -> int:
        """Peak of one forward pass without gradients, in bytes beyond the parameters."""
        live = _LiveBytes()
        attention = _PlannedAttention(self._model, shape.attention, on_gpu=self._on_gpu)
        self._model.eval()
        with torch.no_grad(), self._fakes, attention, live, _Marks(self._model, live) as marks:
            ids = torch.zeros(shape.micro_batch_size, shape.seq_len, dtype=torch.long)
            marks.until_head = _build_mask(shape)
            _forward(self._model, ids, shape)
        self._model.train()
        return max(live.timeline)

    def _set_checkpointing(self, mode: Checkpointing) -> None:
        if mode != self._checkpointing:
            mode.apply(self._model)
        self._checkpointing = mode


def _build_mask(shape: StepShape) -> torch.Tensor | None:
    """What the model makes once and hands to every layer, each of which turns it into a bias of its own."""
    if not shape.attention.has_mask:
        return None
    return torch.empty((shape.micro_batch_size, 1, shape.seq_len, shape.seq_len), dtype=torch.bool)


def _forward(model: nn.Module, ids: torch.Tensor, shape: StepShape) -> torch.Tensor:
    autocast = torch.autocast("cpu", shape.autocast) if shape.autocast else nullcontext()
    with autocast:
        outputs = model(input_ids=ids, labels=ids, use_cache=False)
    if shape.autocast:  # accelerate turns every output of an autocast forward to float32
        outputs.logits = outputs.logits.float()
    return outputs.loss


class _LiveBytes(TorchDispatchMode):
    """Bytes of storages that operators have made and nobody has let go of."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.timeline = array("q")
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        run = _make_grouped if func is torch.ops.aten._grouped_mm.default else func
        out = run(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage(), given)
        return out

    def _add(self, storage: Any, given: set[int]) -> None:
        if id(storage) in given or storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.timeline.append(self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


def _make_grouped(
    left: torch.Tensor, right: torch.Tensor, offs: Any = None, bias: Any = None, out_dtype: Any = None
) -> torch.Tensor:
    """What experts' products give; torch's own fake of them takes bfloat16 alone, its kernels float32 as well."""
    groups = len(offs) if left.dim() == right.dim() == 2 else left.shape[0] if left.dim() == right.dim() else None
    shape = (left.shape[-2], right.shape[-1])
    return left.new_empty(shape if groups is None else (groups, *shape), dtype=out_dtype or left.dtype)


class _Marks:
    """Notes how much lives when each decoder layer begins, and when the head does."""

    def __init__(self, model: nn.Module, live: _LiveBytes) -> None:
        self._live = live
        self._starts: list[int] = []
        self.head_start = 0
        self.until_head: torch.Tensor | None = None
        """Let go of when the head begins."""
        self._handles: list[Any] = []
        self._layers = find_decoder_layers(model)
        self._head = getattr(model, "get_output_embeddings", lambda: None)()

    def __enter__(self) -> _Marks:
        for layer in self._layers:
            self._handles.append(layer.register_forward_pre_hook(self._on_layer))
        if self._head is not None:
            self._handles.append(self._head.register_forward_pre_hook(self._on_head))
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _on_layer(self, *_: Any) -> None:
        self._starts.append(self._live.now)

    def _on_head(self, *_: Any) -> None:
        self.until_head = None
        self.head_start = self._live.now

    def layer_bytes(self) -> int:
        """Between the starts of the first and the last layer of the first forward pass, divided by the layers."""
        starts = self._starts[: len(self._layers)]
        return (starts[-1] - starts[0]) // (len(starts) - 1) if len(starts) > 1 else 0


def find_decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The model's longest list of modules."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    return list(max(lists, key=len)) if lists else []


class _Reducer:
    """A hook for every gradient that does with memory what `Reduction` describes."""

    def __init__(self, sizes: Reduction) -> None:
        self._sizes = sizes
        self._buffers: list[torch.Tensor] | None = None
        self._filled = 0
        self._waiting: torch.Tensor | None = None

    def __call__(self, parameter: torch.Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        if self._buffers is None:
            sizes = [*[self._sizes.bucket] * self._sizes.num_buckets, self._sizes.partition]
            self._buffers = [torch.empty(size, dtype=torch.uint8) for size in sizes]
        if self._filled + gradient.nbytes > self._sizes.bucket:
            self.flush()
        self._filled += gradient.nbytes
        self._waiting = gradient if gradient.nbytes > self._sizes.bucket else None

    def flush(self) -> None:
        """Reduce what the bucket holds."""
        torch.empty(self._filled, dtype=torch.uint8)
        self._filled, self._waiting = 0, None


class _PlannedAttention:
    """Replaces the attention function by one that keeps what the real kernel keeps."""

    def __init__(self, model: nn.Module, stand_in: StandIn, *, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self._config: Any = getattr(model, "config")  # noqa: B009  a PeftModel answers for its base model
        self._stand_in = stand_in

    def __enter__(self) -> None:
        self._before = self._config._attn_implementation
        name = self._stand_in.implementation or "eager"
        if self._stand_in.attend is not None:
            name = f"planned_{self._stand_in.name}"
            ALL_ATTENTION_FUNCTIONS.register(name, partial(self._stand_in.attend, drops_out_by_itself=self._on_gpu))
        self._config._attn_implementation = name

    def __exit__(self, *exc: object) -> None:
        self._config._attn_implementation = self._before
