"""Decoder layers whose pieces are computed together: `perf.fused_layers`. On CUDA by Liger (`liger.py`), on a CPU here.

Of Llama, Mistral, Qwen 2 and 3, and MiniGPT: the residual sum with its RMSNorm, query, key and value as one product
with their rotation inside attention, gate and up as one product, SwiGLU in one pass. A layer keeps its modules,
parameters and names; only its class changes, to a subclass whose forward pass calls `training/kernels/cpu`. Weights
that train are cast to the computing type once a step; LoRA adapters are multiplied together with the frozen weights
that they stand on (`projections.py`). With cached keys (generation) the class it had computes.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from data_prep.errors import UserError
from training.attention import cpu
from training.attention.unmasked import computes_itself
from training.kernels.cpu import build
from training.kernels.cpu.functions import DIM_UNIT, add_rms_norm, attend, attend_packed, swiglu
from training.models import liger, projections
from training.models.projections import CastWeights, find_group, multiply, project

logger = logging.getLogger("redline.models")

# Whose layers and norms are known here: the names of their classes begin so.
FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3", "MiniGPT")
LAYERS = frozenset(f"{family}DecoderLayer" for family in FAMILIES)
NORMS = frozenset(f"{family}RMSNorm" for family in FAMILIES)
MODULES = frozenset(
    {f"transformers.models.{family.lower()}.modeling_{family.lower()}" for family in FAMILIES}
    | {"training.models.minigpt.modeling_minigpt"}
)
OUTPUT_CAPTURING = "transformers.utils.output_capturing"


def _find_dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _find_eps(norm: Any) -> float:
    return norm.eps if hasattr(norm, "eps") else norm.variance_epsilon


def _find_window(attention: Any) -> int | None:
    """Keys that a query sees at most. Mistral's attention asks its config, Llama's none whatever its config says."""
    if type(attention).__name__.startswith("Mistral"):
        return getattr(attention.config, "sliding_window", None)
    return getattr(attention, "sliding_window", None)


def _is_watched(layer: nn.Module) -> bool:
    """Whether a module inside has a hook, which only the class the layer had would call.

    Those of transformers' `output_hidden_states` do not count: they stay in place once they were asked for.
    """
    inner = (module for module in layer.modules() if module is not layer)
    return any(_has_hooks(module) for module in inner)


def _has_hooks(module: nn.Module) -> bool:
    if module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return True
    return any(getattr(hook, "__module__", "") != OUTPUT_CAPTURING for hook in module._forward_hooks.values())


class _FusedLayer(nn.Module):
    """Mixed into the class of a decoder layer."""

    casts: CastWeights
    repeats_last_product = True
    """Whether checkpointing computes the layer's last product again, which needs nothing of it: an autograd function of
    ours saves its input when it has run. Read by `training/metrics/matmuls.py`."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        position_embeddings: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states (rows, tokens, hidden_size) in and out, as the class has it."""
        layer: Any = self
        attention = layer.self_attn
        tokens = hidden_states.shape[1]
        settings = kwargs | {
            "dropout": getattr(attention, "attention_dropout", attention.config.attention_dropout)
            if self.training
            else 0.0,
            "scaling": attention.scaling,
            "sliding_window": _find_window(attention),
        }
        if (
            past_key_values is not None
            or _is_watched(layer)
            or attention.config._attn_implementation != cpu.NAME
            or not computes_itself(attention, tokens, tokens, attention_mask, settings)
        ):
            stock = super().forward
            return stock(
                hidden_states,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_embeddings=position_embeddings,
                **kwargs,
            )
        dtype = _find_dtype(hidden_states)
        norm = layer.input_layernorm
        total, normed = add_rms_norm(hidden_states, None, norm.weight, _find_eps(norm), dtype)
        attended = self._attend(attention, normed, attention_mask, position_embeddings, settings)
        norm = layer.post_attention_layernorm
        total, normed = add_rms_norm(total, attended, norm.weight, _find_eps(norm), dtype)
        return total + self._run_mlp(layer.mlp, normed)

    def _attend(self, attention: Any, normed: Tensor, mask: Any, embeddings: Any, settings: dict[str, Any]) -> Tensor:
        rows, tokens, _ = normed.shape
        dim = attention.head_dim
        cos, sin = (angle.float().contiguous() for angle in embeddings)
        terms = cpu.find_terms(rows, tokens, dim, mask, settings)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        group = None if hasattr(attention, "q_norm") else find_group(normed, projections)
        if group is not None:
            packed = multiply(normed, group, self.casts).view(rows, tokens, -1, dim)
            out = attend_packed(packed, attention.k_proj.out_features // dim, terms, (cos, sin))
        else:
            query, key, value = (
                project(normed, module, self.casts).view(rows, tokens, -1, dim) for module in projections
            )
            if hasattr(attention, "q_norm"):
                query, key = _normalise(attention.q_norm, query), _normalise(attention.k_norm, key)
            out = attend(query, key, value, terms, (cos, sin))
        return project(out.view(rows, tokens, -1), attention.o_proj, self.casts)

    def _run_mlp(self, mlp: Any, normed: Tensor) -> Tensor:
        group = find_group(normed, (mlp.gate_proj, mlp.up_proj))
        if group is None:
            return mlp(normed)
        return project(swiglu(multiply(normed, group, self.casts)), mlp.down_proj, self.casts)


class _FusedNorm(nn.Module):
    """Mixed into the class of an RMSNorm."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The normalised rows in the type that is computed in, of the shape of `hidden_states`."""
        return _normalise(self, hidden_states)


def _normalise(norm: Any, x: Tensor) -> Tensor:
    return add_rms_norm(x, None, norm.weight, _find_eps(norm), _find_dtype(x))[1]


@cache
def _find_class(mixin: type, stock: type) -> type:
    return type(f"Fused{stock.__name__}", (mixin, stock), {})


def _is_one_of(module: nn.Module, names: frozenset[str]) -> bool:
    """Whether its class is of this name and from where it is known: code on the hub may have one of the same name."""
    of = type(module)
    return of.__name__ in names and of.__module__ in MODULES


def find_obstacle(model: nn.Module, *, partitioned: bool = False) -> str | None:
    """What keeps this model's layers from being fused; None: nothing. partitioned: whether a rank holds parts of each
    weight only (ZeRO-3, FSDP)."""
    if partitioned:
        return "a rank holds parts of each weight, which the modules of the model put together"
    layers = [module for module in model.modules() if _is_one_of(module, LAYERS)]
    if not layers:
        return "its layers are of no class that is known here"
    attention: Any = layers[0].self_attn
    if attention.config._attn_implementation != cpu.NAME:
        return f"attention is {attention.config._attn_implementation}, not {cpu.NAME}"
    if attention.head_dim % DIM_UNIT:
        return f"its head_dim of {attention.head_dim} is no multiple of {DIM_UNIT}"
    mlp: Any = layers[0].mlp
    if mlp.gate_proj is None or attention.config.hidden_act not in ("silu", "swish", "swiglu"):
        return f"its activation is {attention.config.hidden_act}, not SwiGLU"
    return None


def find_casts(model: nn.Module) -> CastWeights | None:
    """The cast weights that the fused layers of `model` share; None where none are fused."""
    return next((module.casts for module in model.modules() if isinstance(module, _FusedLayer)), None)


def fuse_layers(
    model: nn.Module,
    requested: str,
    *,
    device_type: str = "cpu",
    partitioned: bool = False,
    is_compiled: bool = False,
    is_planned: bool = False,
) -> None:
    """Fuse the layers of `model` as `perf.fused_layers` asks (auto, on, off); logs what is done and why.

    partitioned: as of `find_obstacle`. is_compiled: torch.compile gets the layers instead. is_planned: nothing will
    run, so no kernel is built. Raises UserError where `on` cannot be.
    """
    if requested == "off":
        return
    by_liger = device_type == "cuda"
    if is_compiled:
        obstacle = "they are compiled"
    else:
        obstacle = liger.find_obstacle(model) if by_liger else find_obstacle(model, partitioned=partitioned)
    if not by_liger:
        obstacle = obstacle or (None if is_planned else build.load())
    if obstacle is not None:
        if requested == "on":
            raise UserError(f"perf.fused_layers: on is not possible: {obstacle}: use auto")
        logger.info("layers: as the model has them (%s)", obstacle)
    elif by_liger:
        liger.apply_liger(model)
        logger.info("layers: by Liger (RMSNorm, RoPE, SwiGLU)")
    else:
        _fuse(model)


def _fuse(model: nn.Module) -> None:
    casts = CastWeights()
    for module in list(model.modules()):
        if _is_one_of(module, LAYERS):
            module.__class__ = _find_class(_FusedLayer, type(module))
            setattr(module, "casts", casts)  # noqa: B010  nn.Module declares tensors and modules only
    for module in list(model.modules()):
        if _is_one_of(module, NORMS):
            module.__class__ = _find_class(_FusedNorm, type(module))
    logger.info("layers: fused (RMSNorm with the residual, QKV, gate and up, SwiGLU in one pass each)")
    adapted = [module for module in model.modules() if isinstance(module, LoraLayer)]
    obstacles = sorted({why for module in adapted if (why := projections.find_obstacle(module)) is not None})
    if obstacles:
        logger.info("adapters: by peft's own code (%s)", "; ".join(obstacles))
    elif adapted:
        logger.info("adapters: within the fused layers")
