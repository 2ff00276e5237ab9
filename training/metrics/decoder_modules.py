"""What each module of a Hugging Face decoder is (attention, linear, experts, router, norm) and where a layer runs it.

Recognised by class, attributes and the names that Hugging Face's architectures share; nothing is computed. peft's
wrappers (LoRA layers, `modules_to_save`) and transformers' `Conv1D` count as the linear they hold. One place, so that a
new architecture is taught here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

FIRST_NORMS = ("input_layernorm", "ln_1", "norm1", "attention_norm", "pre_attention_layernorm", "self_attn_layer_norm")
STAGE_FIRST_NORM, STAGE_ATTENTION, STAGE_MIDDLE_NORM, STAGE_MLP, STAGE_LAST_NORM = range(5)
LAST_NORMS = ("post_feedforward_layernorm", "post_mlp_layernorm", "post_ffw_layernorm")


def walk_top_level(model: nn.Module, head: nn.Module | None) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) from tokens to head: each layer list whole, every other leaf once, the head left out."""

    def visit(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if module is head:
            return
        if is_layer_list(module) or is_linear(module) or not any(True for _ in module.children()):
            yield name, module
            return
        for child_name, child in module.named_children():
            yield from visit(f"{name}.{child_name}" if name else child_name, child)

    yield from visit("", model)


def is_layer_list(module: nn.Module) -> bool:
    """Whether the module is the list of decoder layers."""
    if not isinstance(module, nn.ModuleList) or not len(module):
        return False
    return any(is_attention(m) for layer in module.children() for m in layer.children())


def is_attention(module: nn.Module) -> bool:
    """Whether the module computes attention."""
    return "attention" in type(module).__name__.lower() and any(is_linear(m) for m in module.modules())


def is_trained_side(attention: nn.Module, side: str, output: nn.Module) -> bool:
    """Whether anything trainable makes the queries, keys or values (`side` q, k or v): a child named for another side
    does not, a fused or unnamed one (`c_attn`, `qkv_proj`) does."""
    others = tuple(f"{other}_" for other in "qkv" if other != side)
    return any(is_trainable(m) for n, m in attention.named_children() if m is not output and not n.startswith(others))


def execution_stage(name: str, module: nn.Module) -> int:
    """Place of a layer's child in the order of execution (stable sort keeps registration order within a stage)."""
    if is_attention(module):
        return STAGE_ATTENTION
    if any(is_linear(m) or fused_experts(m) for m in module.modules()):
        return STAGE_MLP
    if name in FIRST_NORMS:
        return STAGE_FIRST_NORM
    return STAGE_LAST_NORM if name in LAST_NORMS else STAGE_MIDDLE_NORM


def is_linear(module: nn.Module) -> bool:
    """Whether the module is a linear layer of any kind."""
    base = base_linear(module)
    return hasattr(base, "weight") and (isinstance(base, nn.Linear) or hasattr(base, "nf"))


def base_linear(module: nn.Module) -> Any:
    """The linear itself, below peft's LoRA layer or `modules_to_save` wrapper."""
    if hasattr(module, "base_layer"):
        return module.base_layer
    if hasattr(module, "modules_to_save") and hasattr(module, "original_module"):
        active = getattr(module, "active_adapter", None)
        saved: Any = module.modules_to_save
        name = active[0] if isinstance(active, (list, tuple)) else active
        return saved[name] if name in saved else module.original_module  # noqa: SIM401
    return module


def linear_children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers below the module, with their names."""
    return ((n, m) for n, m in module.named_children() if is_linear(m))


def linear_features(linear: Any) -> tuple[int, int]:
    """(in, out) from the module's own attributes: a 4-bit or ZeRO-3 partitioned weight has no such shape."""
    return (linear.nx, linear.nf) if hasattr(linear, "nf") else (linear.in_features, linear.out_features)


def full_shape(parameter: Any) -> tuple[int, ...]:
    """The shape of a parameter before it was quantised or partitioned."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def fused_experts(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters that hold the weights of all experts in one tensor."""
    return [
        (n, p)
        for n, p in module.named_parameters(recurse=False)
        if len(full_shape(p)) == 3 and "proj" in n and "bias" not in n
    ]


def is_router(module: nn.Module) -> bool:
    """Whether the module chooses experts."""
    return any(word in type(module).__name__ for word in ("Router", "Gate", "TopK"))


def is_trainable(module: nn.Module) -> bool:
    """Whether any parameter of the module is trained."""
    return any(p.requires_grad for p in module.parameters())


def keeps_tensor(name: str, module: nn.Module) -> bool:
    """Whether a block with this submodule keeps a tensor for backward after its last product."""
    drops = isinstance(module, nn.Dropout) and module.p > 0 and "lora_dropout" not in name
    experts = bool(fused_experts(module)) or (isinstance(module, nn.ModuleList) and name.endswith("experts"))
    return drops or experts or "dora" in type(module).__name__.lower()


def find_checkpoint_options(model: nn.Module) -> dict[str, Any]:
    """Arguments that layers hand to `torch.utils.checkpoint.checkpoint`, as transformers has set them."""
    functions = (getattr(module, "_gradient_checkpointing_func", None) for module in model.modules())
    return next((getattr(function, "keywords", {}) for function in functions if function is not None), {})


def find_text_config(model: nn.Module) -> Any:
    """The config of the language model within a model."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def find_output_head(model: nn.Module) -> nn.Module | None:
    """The module that computes the logits."""
    find: Any = getattr(model, "get_output_embeddings", None)
    return find() if find else None


def is_checkpointing(model: Any) -> bool:
    """Whether some layer is computed again in the backward pass; False for a model that is none of transformers'."""
    for name in ("is_activation_checkpointing", "is_gradient_checkpointing"):  # the older name warns in newer versions
        if hasattr(type(_find_base(model)), name):
            return bool(getattr(model, name))
    return False


def _find_base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
