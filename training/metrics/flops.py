"""FLOPs of the batch that was really trained on, in exact integers and a few microseconds.

`ModelFlops.from_model(model)` walks the built model once (see `matmuls.py`); `.count(...)` then needs only the lengths
of the documents in the batch. Three numbers come out, one for each utilisation figure:

    model     -> perf/mfu_pct       what the training step needs, whatever the implementation
    palm      -> perf/mfu_palm_pct  the same with attention not halved for causality, as most published MFU has it
    hardware  -> perf/hfu_pct       what the machine executes: padding, recomputation, masked-out attention as well

What is counted. A multiplication and an addition are two FLOPs, so `y = W x` costs `2 * in * out` for each token.
Backward costs the same again for the gradient of `x` where anything trainable lies below, and once more for the
gradient of `W` where `W` is trainable. A fully trained dense model so has `6 N` per token over its matmul weights N
(Kaplan et al. 2020, arXiv:2001.08361, section 2.1); LoRA on a frozen model has about `4 N`, and below the first
trainable layer it is `2 N`.

Attention. A document of n tokens has `n (n + 1) / 2` query-key pairs (with a sliding window w each query sees at most
w keys), each costing `2 * width` for the score and `2 * width` for the value sum, width = heads x head size; backward
has two products for each forward one. PaLM's appendix B (arXiv:2204.02311) counts `12 * layers * width * n` per token,
which is `n^2` pairs: that is `palm` here, but over each document, not over the packed row, since no model attends
across documents. Megatron-LM (arXiv:2104.04473, appendix) counts the row, un-halved, and recomputation in as model
FLOPs; that is not done here.

Not counted, as in those papers: embeddings (a lookup), norms, activation functions, softmax, rotary embedding, the
loss, the optimizer, 4-bit dequantisation. All are linear in the tokens with a small factor and run on other units than
matmuls do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from training.attention.kernels import AttentionKernel, find_kernel
from training.attention.pairs import Attended, causal_pairs, square_pairs
from training.kernels.cpu.functions import ops as operators
from training.loss.head import find_loss_head
from training.metrics.matmuls import Matmul, Matmuls, find_matmuls, uses_input_grad_hook

logger = logging.getLogger("redline.metrics")


@dataclass(frozen=True, slots=True)
class StepFlops:
    """FLOPs of forward and backward. Micro-batches of one step add up: `sum(counts, StepFlops())`."""

    model: int = 0
    palm: int = 0
    hardware: int = 0
    forward: int = 0
    """Of `hardware`, the forward pass."""

    def __add__(self, other: StepFlops) -> StepFlops:
        return StepFlops(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


@dataclass(frozen=True)
class _AttentionCost:
    """FLOPs per query-key pair, summed over all layers with the same window."""

    window: int | None
    model: int
    hardware: int
    recompute: int
    forward: int


@dataclass(frozen=True)
class ModelFlops:
    """The coefficients of one model; build with `from_model`, then `count` each micro-batch."""

    layers_per_token: int
    head_per_token: int
    layers_forward_per_token: int
    head_forward_per_token: int
    hardware_layers_per_token: int
    hardware_head_per_token: int
    hardware_layers_forward_per_token: int
    hardware_head_forward_per_token: int
    recompute_per_token: int
    per_forward: int
    recompute_per_forward: int
    attentions: tuple[_AttentionCost, ...]
    kernel: AttentionKernel
    head_on_loss_tokens: bool

    @classmethod
    def from_model(cls, model: nn.Module, *, head_on_loss_tokens: bool | None = None) -> ModelFlops:
        """Walk `model` once. Call it when adapters, freezing and activation checkpointing are in place, before an
        engine wraps it.

        `head_on_loss_tokens`: True when the loss computes logits only where there is a label; Hugging Face models
        compute them for every token. None: as the model's loss kernel does.
        Logs one warning when a weight is met whose FLOPs are not known.
        """
        found = find_matmuls(model)
        executed = find_matmuls(model, embeddings_need_grad=True) if uses_input_grad_hook(model) else found
        if found.uncounted:
            logger.warning(
                "FLOPs leave out %d weights of unknown kind, among them %s", len(found.uncounted), found.uncounted[0]
            )
        loss_head = find_loss_head(model)
        if head_on_loss_tokens is None:
            device = next(model.parameters()).device.type
            head_on_loss_tokens = loss_head is not None and loss_head.kernel.skips_unlabelled(device)
        head_twice = loss_head is not None and loss_head.kernel.computes_logits_twice
        head_forward = sum(m.forward for m in executed.head if not m.rows)
        kernel = find_kernel(str(getattr(getattr(model, "config", None), "_attn_implementation", None) or "eager"))
        return cls(
            layers_per_token=_per_token(m for m in found.layers if not m.overhead),
            head_per_token=_per_token(m for m in found.head if not m.overhead),
            layers_forward_per_token=sum(m.forward for m in found.layers if not m.overhead),
            head_forward_per_token=sum(m.forward for m in found.head if not m.overhead),
            hardware_layers_per_token=_per_token(m for m in executed.layers if not m.rows),
            hardware_head_per_token=_per_token(m for m in executed.head if not m.rows) + head_twice * head_forward,
            hardware_layers_forward_per_token=sum(m.forward for m in executed.layers if not m.rows),
            hardware_head_forward_per_token=head_forward,
            recompute_per_token=sum(m.forward for m in executed.layers if m.recomputed and not m.rows),
            per_forward=sum(m.forward for m in executed.layers + executed.head if m.rows),
            recompute_per_forward=sum(m.forward for m in executed.layers if m.recomputed and m.rows),
            attentions=_attention_costs(found, executed, flash=kernel.recomputes_scores),
            kernel=kernel,
            head_on_loss_tokens=head_on_loss_tokens,
        )

    def count(
        self,
        document_lengths: Sequence[int],
        tokens: int,
        loss_tokens: int,
        *,
        rows: int | None = None,
    ) -> StepFlops:
        """FLOPs of one micro-batch's forward and backward.

        document_lengths: tokens of each document, padding left out; a document is what attention sees as one sequence.
        tokens:           rows x seq_len, padding included: what the layers are computed on.
        loss_tokens:      positions with a label; used only with `head_on_loss_tokens`.
        rows:             rows of the batch. Needed to know the attention a masked kernel executes; None takes the
                          kernel to skip what is masked, a lower bound of `hardware`.
        """
        lengths = [int(n) for n in document_lengths]  # numpy's int32 would overflow when squared
        real_tokens = sum(lengths)
        head_tokens, head_hardware_tokens = (loss_tokens,) * 2 if self.head_on_loss_tokens else (real_tokens, tokens)
        linear = self.layers_per_token * real_tokens + self.head_per_token * head_tokens
        hardware = self.hardware_layers_per_token * tokens + self.hardware_head_per_token * head_hardware_tokens
        hardware += self.per_forward + self.recompute_per_token * tokens + self.recompute_per_forward
        forward = self.hardware_layers_forward_per_token * tokens + self.per_forward
        forward += self.hardware_head_forward_per_token * head_hardware_tokens
        model = palm = linear
        for cost in self.attentions:
            causal, square = _pairs(lengths, cost.window)
            model += cost.model * causal
            palm += cost.model * square
            executed = self._executed_pairs(len(lengths), causal, tokens, rows, cost.window)
            hardware += (cost.hardware + cost.recompute) * executed
            forward += cost.forward * executed
        return StepFlops(model, palm, hardware, forward)

    def count_forward(self, document_lengths: Sequence[int], tokens: int, *, rows: int | None = None) -> StepFlops:
        """FLOPs of a forward pass without a backward pass, as of a reference model. Arguments as of `count`."""
        lengths = [int(n) for n in document_lengths]
        linear = (self.layers_forward_per_token + self.head_forward_per_token) * sum(lengths)
        hardware = (self.hardware_layers_forward_per_token + self.hardware_head_forward_per_token) * tokens
        hardware += self.per_forward
        model = palm = linear
        for cost in self.attentions:
            causal, square = _pairs(lengths, cost.window)
            model += cost.forward * causal
            palm += cost.forward * square
            hardware += cost.forward * self._executed_pairs(len(lengths), causal, tokens, rows, cost.window)
        return StepFlops(model, palm, hardware, hardware)

    def _executed_pairs(self, documents: int, causal: int, tokens: int, rows: int | None, window: int | None) -> int:
        if not rows:
            return causal
        return self.kernel.executed_pairs(Attended(causal, documents, rows, tokens // rows, window))

    def count_generation(self, prompt_tokens: int, new_tokens: int) -> int:
        """FLOPs of writing `new_tokens` after a prompt with a key-value cache, for one sequence.

        The prompt goes through the layers at once and gives the first token; every further one goes through them alone
        and attends to itself and all before it, so a query never sees a later key and nothing is done twice: it is the
        forward pass of all tokens but the last, which nothing follows, with the head on those positions only that a
        token was drawn from. 0 new tokens cost nothing.
        """
        if not new_tokens:
            return 0
        tokens = prompt_tokens + new_tokens - 1
        linear = self.layers_forward_per_token * tokens + self.head_forward_per_token * new_tokens
        return linear + sum(cost.forward * causal_pairs(tokens, cost.window) for cost in self.attentions)


def _pairs(lengths: list[int], window: int | None) -> tuple[int, int]:
    """(causal, un-halved) pairs over all documents."""
    if window is None:
        squares = sum([n * n for n in lengths])
        return (squares + sum(lengths)) // 2, squares
    return sum([causal_pairs(n, window) for n in lengths]), sum([square_pairs(n, window) for n in lengths])


def _per_token(matmuls: Iterable[Matmul]) -> int:
    return sum(m.forward * (1 + m.input_grad + m.weight_grad) for m in matmuls)


def _attention_costs(found: Matmuls, executed: Matmuls, *, flash: bool) -> tuple[_AttentionCost, ...]:
    """Per-pair FLOPs by window: `found` gives what is needed, `executed` what is done."""
    costs: dict[int | None, _AttentionCost] = {}
    for needed, done in zip(found.attentions, executed.attentions, strict=True):
        so_far = costs.get(needed.window, _AttentionCost(needed.window, 0, 0, 0, 0))
        costs[needed.window] = _AttentionCost(
            needed.window,
            model=so_far.model + needed.forward + needed.backward,
            hardware=so_far.hardware + done.forward + (done.flash_backward if flash else done.backward),
            recompute=so_far.recompute + (done.forward if done.recomputed else 0),
            forward=so_far.forward + needed.forward,
        )
    return tuple(costs.values())


# -- the independent count ---------------------------------------------------------------------------------------------


def measure_flops(fn: Callable[[], Any], *, flash_recompute: bool = True) -> int:
    """Run `fn` (a forward and backward) under torch's `FlopCounterMode` and return the FLOPs it executed.

    torch's counter is corrected in its two known deviations, and completed in three:
    1. it takes causal attention for full: here `is_causal` counts `n (n + 1) / 2` pairs (plus the window, in varlen
    kernels);
    2. its flash backward has five products, one of them the scores computed again: kept by default, as the machine
    does it
       (compare with `StepFlops.hardware`), left out with `flash_recompute=False` (compare with `StepFlops.model`);
    3. it does not know the CPU flash kernel at all: here it is counted like the others;
    4. nor the grouped products that experts are computed with, torch's and the one that transformers has instead;
    5. nor products that are added to a tensor in place, nor those with frozen weights in our fused layers.
    Runs everything once at reduced speed: a check for now and then, not a counter for each step.
    """
    formulas = _attention_formulas(flash_recompute) | _document_formulas(flash_recompute)
    formulas |= _grouped_formulas() | _frozen_formulas()
    formulas[torch.ops.aten.addmm_] = lambda _, *factors, **kwargs: count_grouped(*factors)
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        fn()
    return counter.get_total_flops()


def _grouped_formulas() -> dict[Any, Callable[..., int]]:
    """Of the products of rows with the weights of the group that they lie in, as far as they are registered."""
    aten, hf = torch.ops.aten, torch.ops.transformers
    known: dict[str, tuple[Any, Callable[..., int]]] = {
        "_grouped_mm": (aten, count_grouped),
        "_scaled_grouped_mm": (aten, count_grouped),
        "grouped_mm_fallback": (hf, count_grouped),
        "grouped_mm_fallback_backward": (hf, lambda *shapes, **kwargs: 2 * count_grouped(*shapes)),
    }
    return {getattr(space, name): formula for name, (space, formula) in known.items() if hasattr(space, name)}


def count_grouped(a_shape: Sequence[int], b_shape: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """FLOPs of one grouped product of `a` with `b`. Whichever axis the groups share out (rows of a, columns of b, or
    the one summed over), each element of it belongs to one group only; two stacks are a batched product."""
    *batch, rows, inner = a_shape
    groups = batch[0] if batch and len(b_shape) == 3 else 1
    return 2 * groups * rows * inner * b_shape[-1]


def _attention_formulas(flash_recompute: bool) -> dict[Any, Callable[..., int]]:
    aten = torch.ops.aten
    dense = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
    names = [f"_scaled_dot_product_{kind}{way}" for kind in dense for way in ("", "_backward")]
    packets = [getattr(aten, name) for name in names if hasattr(aten, name)]
    varlen = getattr(torch.ops, "torch_attn", None)
    packets += [getattr(varlen, n) for n in ("_varlen_attn", "_varlen_attn_backward") if hasattr(varlen, n)]
    return {packet: _attention_formula(packet, flash_recompute) for packet in packets}


def _document_formulas(flash_recompute: bool) -> dict[Any, Callable[..., int]]:
    """Of our CPU attention, (rows, tokens, heads, dim): the pairs within its documents."""

    def count(query: Any, *rest: Any, out_val: Any = None) -> int:
        lengths, _, window = rest[5:8]
        pairs = sum(causal_pairs(length, window or None) for length in lengths.tolist())
        return 4 * query.shape[2] * query.shape[3] * pairs

    def count_backward(grad: Any, query: Any, *rest: Any, out_val: Any = None) -> int:
        forward = count(query, *rest[:4], *rest[6:10])
        return 2 * forward + (forward // 2 if flash_recompute else 0)

    for formula in (count, count_backward):
        formula._get_raw = True  # pyright: ignore[reportFunctionMemberAccess]  as above
    return {operators.attention: count, operators.attention_backward: count_backward}


def _frozen_formulas() -> dict[Any, Callable[..., int]]:
    """Of the products with frozen weights and adapters in fused layers (`training/models/projections.py`)."""

    def count(rows: Any, weights: Any, biases: Any, lows: Any, ups: Any, **kwargs: Any) -> int:
        factors = [*weights, *(up for up in ups if up is not None)]
        return sum(2 * rows[0] * out_features * in_features for out_features, in_features in factors)

    return {operators.multiply_frozen: count} if hasattr(operators, "multiply_frozen") else {}


def _attention_formula(packet: Any, flash_recompute: bool) -> Callable[..., int]:
    """A FLOP formula for one attention operator, reading its arguments by the names in its schema."""
    names = [argument.name for argument in packet.default._schema.arguments]
    is_backward = "grad_out" in names or "grad_out_" in names

    def formula(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        given = dict(zip(names, args, strict=False)) | kwargs
        query, key, value = given["query"], given["key"], given["value"]
        heads, qk_dim, v_dim, pairs = _executed_shape(given, query, key, value)
        scores, sums = 2 * heads * qk_dim * pairs, 2 * heads * v_dim * pairs
        if not is_backward:
            return scores + sums
        return 2 * scores + 2 * sums + (scores if flash_recompute else 0)

    formula._get_raw = True  # pyright: ignore[reportFunctionMemberAccess]  torch's mark for "pass tensors, not shapes"
    return formula


def _executed_shape(given: dict[str, Any], query: Any, key: Any, value: Any) -> tuple[int, int, int, int]:
    """(heads, qk_dim, v_dim, query-key pairs): dense operators take (batch, heads, seq, dim), varlen ones (tokens,
    heads, dim)."""
    causal = bool(given.get("is_causal", False))
    heads, qk_dim, v_dim = query.shape[1], query.shape[-1], value.shape[-1]
    if query.dim() == 4:
        batch, _, queries, _ = query.shape
        return heads, qk_dim, v_dim, batch * (causal_pairs(queries) if causal else queries * key.shape[2])
    lengths = given["cu_seq_q"].diff().tolist()
    left = (given.get("window_size") or [-1])[0]  # keys seen before the query itself; -1: all
    count, window = causal_pairs if causal or left >= 0 else square_pairs, left + 1 if left >= 0 else None
    return heads, qk_dim, v_dim, sum(count(n, window) for n in lengths)
