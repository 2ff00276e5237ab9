"""Products of one input with several weights, side by side in one output, and with LoRA adapters on them.

A projection i makes x W_iᵀ + b_i of its input, with an adapter + s_i (x A_iᵀ) B_iᵀ (LoRA, arXiv 2106.09685). Weights
that train are packed into one product each way, since they are cast once a step anyway. Frozen ones are not copied:
each writes its own columns of the output, which takes as long.

peft's own forward pass computes whatever is more than that: dropout, DoRA, several adapters, merged or disabled ones,
quantised weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional


class CastWeights:
    """Weights in the type that a step computes in, packed side by side where one product takes several.

    With `keeps` they are kept until `clear`, which is due whenever weights have changed: a fused optimizer changes them
    without a trace. Without, each forward pass makes its own.
    """

    def __init__(self) -> None:
        self.keeps = False
        self._kept: dict[tuple[Any, ...], Tensor] = {}

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()

    def get(self, tensors: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """The tensors (n_i, ...) as one (sum of n_i, ...) of `dtype`."""
        if len(tensors) == 1 and tensors[0].dtype == dtype:
            return tensors[0].detach()
        key = (dtype, *map(id, tensors))
        if key in self._kept:
            return self._kept[key]
        first = tensors[0]
        packed = first.new_empty((sum(len(t) for t in tensors), *first.shape[1:]), dtype=dtype)
        for part, tensor in zip(packed.split([len(t) for t in tensors]), tensors, strict=True):
            part.copy_(tensor.detach())
        if self.keeps:
            self._kept[key] = packed
        return packed


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, casts: CastWeights, count: int, *parameters: Tensor) -> Tensor:
        weight = casts.get(parameters[:count], x.dtype)
        bias = casts.get(parameters[count:], x.dtype) if len(parameters) > count else None
        ctx.save_for_backward(x)
        ctx.weight, ctx.shapes = weight, [(len(p), p.dtype) for p in parameters]
        ctx.count = count
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        of_x = (grad @ ctx.weight).view(x.shape) if ctx.needs_input_grad[0] else None
        results: list[Tensor | None] = [None] * len(ctx.shapes)
        wanted = ctx.needs_input_grad[3:]
        for first in range(0, len(ctx.shapes), ctx.count):  # weights, then biases
            group = range(first, first + ctx.count)
            if not any(wanted[i] for i in group):
                continue
            packed = grad.t() @ x.reshape(-1, x.shape[-1]) if first == 0 else grad.sum(0, dtype=torch.float32)
            parts = packed.split([ctx.shapes[i][0] for i in group])
            for i, part in zip(group, parts, strict=True):
                results[i] = part.to(ctx.shapes[i][1]) if wanted[i] else None
        return of_x, None, None, *results


@dataclass(frozen=True)
class _Adapter:
    """down (rank, in_features), up (out_features, rank), and what their product is scaled by."""

    down: nn.Parameter
    up: nn.Parameter
    scale: float


@dataclass(frozen=True)
class Projection:
    """A Linear layer and the adapter on it, if there is one."""

    base: nn.Linear
    adapter: _Adapter | None = None

    @property
    def is_frozen(self) -> bool:
        """Whether nothing but the adapter trains."""
        return not any(parameter.requires_grad for parameter in self.base.parameters(recurse=False))


# An operator, for selective checkpointing (`training/activations`) to keep what it makes: within, outputs are written
# into a given tensor, and those are not kept.
_library = torch.library.Library("redline", "FRAGMENT")
_library.define(
    "multiply_frozen(Tensor rows, Tensor[] weights, Tensor?[] biases, Tensor?[] lows, Tensor?[] ups) -> Tensor"
)


def _multiply_frozen(
    rows: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    lows: list[Tensor | None],
    ups: list[Tensor | None],
) -> Tensor:
    """rows (n, in_features) to (n, sum of out_features): each weight, and each `up` on its `low` (n, rank)."""
    widths = [len(weight) for weight in weights]
    out = rows.new_empty((len(rows), sum(widths)))
    for weight, bias, part, low, up in zip(weights, biases, out.split(widths, 1), lows, ups, strict=True):
        if bias is None:
            torch.mm(rows, weight.t(), out=part)
        else:
            torch.addmm(bias, rows, weight.t(), out=part)
        if low is not None and up is not None:
            part.addmm_(low, up.t())
    return out


_library.impl("multiply_frozen", _multiply_frozen, "CPU")


@torch.library.register_fake("redline::multiply_frozen", lib=_library)
def _make_product(rows: Tensor, weights: list[Tensor], *args: Any) -> Tensor:
    return rows.new_empty((len(rows), sum(len(weight) for weight in weights)))


class _Frozen(torch.autograd.Function):
    """Gradients of the input and of adapters only. adapters: down and up of each projection that has one, in turn."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: tuple[Projection, ...], casts: CastWeights, *adapters: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        weights = [casts.get((one.base.weight,), x.dtype) for one in group]
        widths = [len(weight) for weight in weights]
        ranks = [0 if one.adapter is None else len(one.adapter.down) for one in group]
        down = torch.cat(adapters[::2]).to(x.dtype) if adapters else None
        ups = [None if one.adapter is None else (one.adapter.up * one.adapter.scale).to(x.dtype) for one in group]
        low = None if down is None else rows @ down.t()
        lows = [None] * len(group) if low is None else low.split(ranks, 1)
        biases = [None if one.base.bias is None else casts.get((one.base.bias,), x.dtype) for one in group]
        out = torch.ops.redline.multiply_frozen(rows, weights, biases, lows, ups)
        ctx.save_for_backward(*(() if low is None else (x, low)))
        ctx.shape, ctx.group, ctx.weights = x.shape, group, weights
        ctx.widths, ctx.ranks, ctx.down, ctx.ups = widths, ranks, down, ups
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        parts = grad.split(ctx.widths, 1)
        results: list[Tensor] = []
        of_low = None
        if ctx.down is not None:
            x, low = ctx.saved_tensors
            of_low = torch.empty_like(low)
            lows, of_lows = low.split(ctx.ranks, 1), of_low.split(ctx.ranks, 1)
            for part, up, of_part in zip(parts, ctx.ups, of_lows, strict=True):
                if up is not None:
                    torch.mm(part, up, out=of_part)
            of_downs = (of_low.t() @ x.reshape(-1, x.shape[-1])).split(ctx.ranks)
            for one, part, of_part, of_down in zip(ctx.group, parts, lows, of_downs, strict=True):
                if one.adapter is not None:
                    of_up = (part.t() @ of_part).to(one.adapter.up.dtype) * one.adapter.scale
                    results += [of_down.to(one.adapter.down.dtype), of_up]
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = parts[0] @ ctx.weights[0]
            for part, weight in zip(parts[1:], ctx.weights[1:], strict=True):
                of_x.addmm_(part, weight)
            if of_low is not None:
                of_x.addmm_(of_low, ctx.down)
            of_x = of_x.view(ctx.shape)
        return of_x, None, None, *results


def multiply(x: Tensor, group: tuple[Projection, ...], casts: CastWeights) -> Tensor:
    """What a group of `find_group` makes of x (..., in_features), side by side: (..., sum of out_features)."""
    if all(one.is_frozen for one in group):
        adapters = [one.adapter for one in group if one.adapter is not None]
        return _Frozen.apply(x, group, casts, *(factor for one in adapters for factor in (one.down, one.up)))
    parameters = [one.base.weight for one in group]
    biases = [one.base.bias for one in group]
    parameters += [bias for bias in biases if bias is not None]
    return _Linear.apply(x, casts, len(group), *parameters)


def project(x: Tensor, module: nn.Module, casts: CastWeights) -> Tensor:
    """What `module` makes of x (..., in_features): (..., out_features), by `multiply` where that can compute it."""
    group = find_group(x, (module,))
    return module(x) if group is None else multiply(x, group, casts)


def find_group(x: Tensor, modules: tuple[nn.Module, ...]) -> tuple[Projection, ...] | None:
    """The modules as `multiply` takes them for x; None: at least one computes more than that, or they are not alike in
    having a bias, or an adapter stands on one that trains."""
    found = tuple(one for module in modules if (one := _find_projection(x, module)) is not None)
    if len(found) < len(modules):
        return None
    if all(one.is_frozen for one in found):
        return found
    alike = len({one.base.bias is None for one in found}) == 1
    return found if alike and all(one.adapter is None for one in found) else None


def _find_projection(x: Tensor, module: nn.Module) -> Projection | None:
    if type(module) is nn.Linear:
        return Projection(module)
    layer: Any = module
    if not isinstance(module, LoraLayer) or find_obstacle(layer, trains=module.training) is not None:
        return None
    (name,) = _list_active(layer)
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    if down.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        return None  # peft computes in the type of the adapter then
    return Projection(layer.base_layer, _Adapter(down, up, layer.scaling[name]))


def find_obstacle(layer: Any, *, trains: bool = True) -> str | None:
    """What of this LoRA layer of peft's `multiply` cannot compute; None: nothing. trains: whether dropout is on."""
    active = _list_active(layer)
    if type(layer) is not LoraLinear or type(layer.base_layer) is not nn.Linear or layer.fan_in_fan_out:
        return f"on {type(layer.base_layer).__name__}, not nn.Linear"
    if layer.disable_adapters or layer.merged or len(active) != 1:
        return "disabled, merged, or several at once"
    (name,) = active
    if name in layer.lora_variant:
        return f"of another kind, {type(layer.lora_variant[name]).__name__}"
    up, dropout = layer.lora_B[name], layer.lora_dropout[name]
    if type(layer.lora_A[name]) is not nn.Linear or type(up) is not nn.Linear or up.bias is not None:
        return "with a bias, or not of nn.Linear"
    if trains and not isinstance(dropout, nn.Identity):
        return f"with dropout, {dropout.p:g}, not 0"
    return None


def _list_active(layer: Any) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.lora_A]
