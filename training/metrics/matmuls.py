"""Find the matrix multiplications of a built Hugging Face decoder, and which gradients each one computes.

Guarantees: one walk over the modules, no forward pass, no weights read (a meta model, a 4-bit model or a ZeRO-3
partitioned model gives the same answer as the plain one). For each linear map it finds the features, how many times a
token passes through it (experts), whether its weight has a gradient, and whether its input needs one.

An input needs a gradient when anything trainable lies before it on the way from the tokens, so the walk goes in order
of execution: embeddings, then each layer (norm before attention, attention inputs, attention, output projection,
norms, MLP inputs, MLP output), final norm, head. Hugging Face registers norms after the blocks they precede; their
place is taken from their name. Within a block the linear registered last takes what the others make.

Costs and limits: a few milliseconds, once. Parallel attention + MLP blocks (Phi, NeoX), low-rank query/key stacks
(DeepSeek) and mixed trainability inside an MoE block are treated as if sequential or parallel; this can only misjudge
input gradients inside the lowest trainable layer. Parameters with two or more dimensions that the walk does not
understand (convolutions, state-space mixers) are returned in `uncounted`, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from training.metrics.decoder_modules import (
    STAGE_MLP,
    base_linear,
    execution_stage,
    find_checkpoint_options,
    find_output_head,
    find_text_config,
    full_shape,
    fused_experts,
    is_attention,
    is_checkpointing,
    is_layer_list,
    is_linear,
    is_router,
    is_trainable,
    is_trained_side,
    keeps_tensor,
    linear_children,
    linear_features,
    walk_top_level,
)


@dataclass(frozen=True)
class Matmul:
    """One linear map `in_features -> out_features`; forward costs `2 * in * out * times` FLOPs a token."""

    name: str
    in_features: int
    out_features: int
    weight_grad: bool
    input_grad: bool
    times: int = 1
    """Passes per token: 1, or the experts active per token."""
    rows: int = 0
    """Rows multiplied in each forward pass whatever the batch (DoRA's weight norm); 0: one row a token."""
    overhead: bool = False
    """True: the implementation does it, the model does not need it. Counts as hardware FLOPs only."""
    recomputed: bool = False
    """Done again in backward, as activation checkpointing is set in the model (see `_Walk.mark_recomputed`)."""

    @property
    def forward(self) -> int:
        """FLOPs per token of the forward product."""
        return 2 * self.in_features * self.out_features * self.times * max(self.rows, 1)


@dataclass(frozen=True)
class Attention:
    """The two products of one attention layer: `Q K^T` (width `qk_width`) and `P V` (width `v_width`).

    Width is heads x head size over the query heads: grouped-query attention saves parameters and memory, not these
    FLOPs.
    """

    name: str
    qk_width: int
    v_width: int
    window: int | None
    q_grad: bool
    k_grad: bool
    v_grad: bool
    recomputed: bool = False

    @property
    def forward(self) -> int:
        """FLOPs per query-key pair: the score, and the value times its weight."""
        return 2 * (self.qk_width + self.v_width)

    @property
    def backward(self) -> int:
        """FLOPs per pair of the gradients that are needed: dV; dP for the scores, then from it dQ and dK."""
        score_grad = self.q_grad or self.k_grad
        return 2 * self.qk_width * (self.q_grad + self.k_grad) + 2 * self.v_width * (self.v_grad + score_grad)

    @property
    def flash_backward(self) -> int:
        """What a flash kernel does as soon as any gradient is needed: all four products, and the scores once more
        (FlashAttention, arXiv:2205.14135, section 3.1)."""
        return 6 * self.qk_width + 4 * self.v_width if self.backward else 0


@dataclass
class Matmuls:
    """What the walk found. `layers` and `head` are kept apart: a loss may need logits at some positions only."""

    layers: list[Matmul] = field(default_factory=list)
    head: list[Matmul] = field(default_factory=list)
    attentions: list[Attention] = field(default_factory=list)
    uncounted: list[str] = field(default_factory=list)


def find_matmuls(model: nn.Module, *, embeddings_need_grad: bool = False) -> Matmuls:
    """Walk `model` (a Hugging Face decoder, peft-wrapped or not) in order of execution.

    `embeddings_need_grad`: count input gradients as if the embeddings were trained (see `uses_input_grad_hook`).
    """
    walk = _Walk(model, embeddings_need_grad)
    head = walk.head
    for name, module in walk_top_level(model, head):
        if is_layer_list(module):
            for i, layer in enumerate(module.children()):
                walk.layer(f"{name}.{i}", layer)
        else:
            walk.block(name, module, walk.upstream)
            walk.note_trainable(module)
    if head is not None:
        walk.head_block(head)
    return walk.found


def uses_input_grad_hook(model: nn.Module) -> bool:
    """True when `enable_input_require_grads` makes the embeddings' output require a gradient (peft does, to
    checkpoint)."""
    return any(getattr(m, "_require_grads_hooks", None) or hasattr(m, "_require_grads_hook") for m in model.modules())


class _Walk:
    def __init__(self, model: nn.Module, upstream: bool) -> None:
        self.found = Matmuls()
        self.config: Any = find_text_config(model)
        options = find_checkpoint_options(model)
        self.stops_early = not options.get("use_reentrant") and options.get("early_stop", True)
        self.keeps_products = "context_fn" in options  # selective: by us or, it is assumed, by a policy alike
        self.checkpoints = is_checkpointing(model)
        self.head = find_output_head(model)
        self.upstream = upstream
        """Whether anything trainable lies before the current point."""

    def note_trainable(self, module: nn.Module) -> None:
        self.upstream = self.upstream or is_trainable(module)

    # -- one decoder layer ---------------------------------------------------------------------------------------------

    def layer(self, name: str, layer: nn.Module) -> None:
        first_matmul, first_attention = len(self.found.layers), len(self.found.attentions)
        children = sorted(layer.named_children(), key=lambda item: execution_stage(item[0], item[1]))
        for child_name, child in children:
            child_path = f"{name}.{child_name}"
            if is_attention(child):
                self.attention(child_path, child)
            else:
                self.block(child_path, child, self.upstream)
            self.note_trainable(child)
        self._own_parameters(name, layer)
        if self.upstream and self._computes_again(layer):  # the backward pass reaches this layer
            self.found.attentions[first_attention:] = [
                replace(a, recomputed=True) for a in self.found.attentions[first_attention:]
            ]
            stops_early = self.stops_early and not getattr(layer, "repeats_last_product", False)
            self.mark_recomputed(first_matmul, *children[-1], stops_early=stops_early)

    def _computes_again(self, layer: nn.Module) -> bool:
        """Layers of models from the hub may have no switch of their own."""
        return bool(getattr(layer, "gradient_checkpointing", self.checkpoints)) and not self.keeps_products

    def attention(self, name: str, module: nn.Module) -> None:
        """Inputs (q, k, v), the two attention products, then the output projection: the linear registered last."""
        maps = list(linear_children(module))
        if not maps:  # an attention module that only wraps another, as BERT's and GPT-Neo's do
            for child_name, child in module.named_children():
                if is_attention(child):
                    self.attention(f"{name}.{child_name}", child)
            return
        *inputs, (last_name, last) = maps
        entry = self.upstream
        for child_name, child in inputs:
            self.found.layers += self._linear(f"{name}.{child_name}", child, entry)
        grads = [entry or is_trained_side(module, side, last) for side in ("q", "k", "v")]
        v_width = linear_features(base_linear(last))[0]
        qk_width, window = self._qk_width(module, v_width), self._window(module)
        self.found.attentions.append(Attention(name, qk_width, v_width, window, *grads))
        self.found.layers += self._linear(f"{name}.{last_name}", last, any(grads))
        self._own_parameters(name, module)

    def _qk_width(self, module: nn.Module, v_width: int) -> int:
        qk_head_dim, v_head_dim = getattr(module, "qk_head_dim", None), getattr(module, "v_head_dim", None)
        return v_width // v_head_dim * qk_head_dim if qk_head_dim and v_head_dim else v_width

    def _window(self, module: nn.Module) -> int | None:
        if hasattr(module, "sliding_window"):
            window = module.sliding_window
        else:
            layer_types, index = getattr(self.config, "layer_types", None), getattr(module, "layer_idx", None)
            slides = layer_types is None or index is None or layer_types[index] == "sliding_attention"
            slides = slides and getattr(self.config, "use_sliding_window", True)
            window = getattr(self.config, "sliding_window", None) if slides else None
        return window if isinstance(window, int) and window > 0 else None

    # -- any other block -----------------------------------------------------------------------------------------------

    def block(
        self, name: str, module: nn.Module, entry: bool, into: list[Matmul] | None = None, times: int = 1
    ) -> None:
        """An MLP, an MoE block, a norm: linears but the last see the block's input, the last sees the others'
        output."""
        into = self.found.layers if into is None else into
        if is_linear(module):
            into += self._linear(name, module, entry, times)
            return
        maps = [(n, m) for n, m in module.named_children() if is_linear(m)]
        blocks = [(n, m) for n, m in module.named_children() if not is_linear(m)]
        has_inner_maps = any(is_linear(m) or fused_experts(m) for _, b in blocks for m in b.modules())
        inner_grad = entry
        for i, (child_name, child) in enumerate(maps):
            is_output = i == len(maps) - 1 and len(maps) > 1 and not has_inner_maps
            into += self._linear(f"{name}.{child_name}", child, inner_grad if is_output else entry, times)
            inner_grad = inner_grad or is_trainable(child)
        for child_name, child in blocks:
            if isinstance(child, nn.ModuleList) and child_name == "experts":  # one module an expert: top-k of them run
                self.block(f"{name}.{child_name}.0", child[0], entry, into, self._active_experts(module))
            else:
                self.block(f"{name}.{child_name}", child, entry, into, times)
        self._own_parameters(name, module, entry, into)

    def head_block(self, head: nn.Module) -> None:
        self.block("lm_head", head, self.upstream, self.found.head)

    def _own_parameters(
        self, name: str, module: nn.Module, entry: bool | None = None, into: list[Matmul] | None = None
    ) -> None:
        """Parameters used without an nn.Linear around them: fused experts (3-d) and routers (2-d weight)."""
        entry, into = self.upstream if entry is None else entry, self.found.layers if into is None else into
        experts = fused_experts(module)
        inner_grad = entry
        for i, (parameter_name, parameter) in enumerate(experts):
            _, rows, cols = full_shape(parameter)
            top_k = self._active_experts(module)
            into.append(
                Matmul(
                    f"{name}.{parameter_name}", cols, rows, parameter.requires_grad, inner_grad if i else entry, top_k
                )
            )
            inner_grad = inner_grad or parameter.requires_grad
        if experts or isinstance(module, nn.Embedding):
            return
        for parameter_name, parameter in module.named_parameters(recurse=False):
            shape = full_shape(parameter)
            if len(shape) == 2 and parameter_name == "weight" and is_router(module):
                into.append(Matmul(name, shape[1], shape[0], parameter.requires_grad, entry))
            elif len(shape) >= 2:
                self.found.uncounted.append(f"{name}.{parameter_name}")

    def _active_experts(self, module: nn.Module) -> int:
        for owner in (module, self.config):
            for key in ("num_experts_per_tok", "top_k", "moe_topk", "moe_top_k", "num_experts_per_token"):
                value = getattr(owner, key, None)
                if isinstance(value, int) and value > 0:
                    return value
        raise ValueError("experts found, but the config names no num_experts_per_tok: cannot count active experts")

    # -- one linear, plain or with adapters ----------------------------------------------------------------------------

    def _linear(self, name: str, module: nn.Module, entry: bool, times: int = 1) -> list[Matmul]:
        """A linear is one product; with LoRA it is `W x`, `A x` and `B (A x)` for each active adapter."""
        base = base_linear(module)
        in_features, out_features = linear_features(base)
        weight: Any = base.weight
        found = [Matmul(name, in_features, out_features, bool(weight.requires_grad), entry, times)]
        if (
            not hasattr(module, "lora_A")
            or getattr(module, "disable_adapters", False)
            or getattr(module, "merged", False)
        ):
            return found
        for adapter in getattr(module, "active_adapters", []):
            if adapter in module.lora_A:  # pyright: ignore[reportOperatorIssue]
                found += _adapter_matmuls(f"{name}.{adapter}", module, adapter, found[0])
        return found

    def mark_recomputed(self, first: int, last_name: str, last: nn.Module, *, stops_early: bool) -> None:
        """Mark the matmuls of one layer (from index `first`) that checkpointing does again.

        torch's non-reentrant checkpoint stops at the last tensor that backward needs. The layer's last product saves
        its inputs before it runs and a residual sum saves nothing, so that product is not done again, unless something
        after it keeps a tensor: a norm, a dropout, expert weighting, DoRA's magnitudes. In our fused layers it is.
        """
        marked = [replace(m, recomputed=True) for m in self.found.layers[first:]]
        keeps_more = execution_stage(last_name, last) > STAGE_MLP or any(
            keeps_tensor(n, m) for n, m in last.named_modules()
        )
        if stops_early and not keeps_more:
            marked[-1] = replace(marked[-1], recomputed=False)
        self.found.layers[first:] = marked


def _adapter_matmuls(name: str, module: Any, adapter: str, base: Matmul) -> list[Matmul]:
    """`A: in -> r`, `B: r -> out`, and for DoRA what peft does beyond them (hardware FLOPs only): `B A` is built from
    an identity matrix in every forward pass for the weight norm (detached: no backward), and with dropout the frozen
    product is done a second time on the dropped-out input."""
    a, b = module.lora_A[adapter], module.lora_B[adapter]
    r = linear_features(a)[1]
    a_trains, b_trains = bool(a.weight.requires_grad), bool(b.weight.requires_grad)
    found = []
    rewraps = bool(getattr(module, "fan_in_fan_out", False))  # peft's transpose makes a new Parameter, which trains
    magnitude = getattr(module, "lora_magnitude_vector", {})
    if adapter in magnitude:
        dropout = module.lora_dropout[adapter]
        if isinstance(dropout, nn.Dropout) and dropout.p > 0:
            found.append(
                Matmul(
                    f"{name}.dora_base", base.in_features, base.out_features, rewraps, base.input_grad, overhead=True
                )
            )
        identity = {"rows": base.in_features, "overhead": True}
        found.append(Matmul(f"{name}.dora_norm_A", base.in_features, r, False, False, **identity))
        found.append(Matmul(f"{name}.dora_norm_B", r, base.out_features, False, False, **identity))
    found.append(Matmul(f"{name}.lora_A", base.in_features, r, a_trains, base.input_grad, base.times))
    found.append(Matmul(f"{name}.lora_B", r, base.out_features, b_trains, base.input_grad or a_trains, base.times))
    return found
