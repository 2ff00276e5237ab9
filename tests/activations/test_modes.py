"""Each mode of activation checkpointing trains as none does, and keeps what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from data_prep.errors import UserError
from tests.models.test_fused import build_family, kernels, make_batch  # noqa: F401
from training.activations.kept_products import KEPT, is_kept
from training.activations.modes import FULL, MODES, OFF, Checkpointing, find_checkpointing
from training.attention import cpu
from training.metrics.flops import ModelFlops, measure_flops
from training.models.fused import find_casts

STEPS = 3
RECOMPUTING = pytest.mark.parametrize("mode", MODES[1:], ids=lambda mode: mode.name)
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj", "gate_proj", "down_proj"]}


def train(
    model: Any, mode: Checkpointing, dtype: torch.dtype = torch.float32
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of a few steps of two packed micro-batches each, and the gradients of the first step by name."""
    mode.apply(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    casts = find_casts(model)
    losses, first = [], {}
    batch = make_batch("packed")
    torch.manual_seed(3)  # of dropout
    for _ in range(STEPS):
        if casts is not None:  # as `WeightCasts` in a run
            casts.clear()
            casts.keeps = True
        for _ in range(2):
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = model(**batch, use_cache=False).loss
            loss.backward()
            losses.append(loss.item())
        first = first or {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
    return losses, first


@RECOMPUTING
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("attention", [cpu.NAME, "sdpa", "eager"])  # the first: fused layers
def test_every_bit_is_that_of_a_training_that_stores_all(attention: str, dtype: torch.dtype, mode: Checkpointing):
    expected = train(build_family("qwen2", attention, num_hidden_layers=4), OFF, dtype)
    losses, gradients = train(build_family("qwen2", attention, num_hidden_layers=4), mode, dtype)
    assert losses == expected[0]
    assert gradients.keys() == expected[1].keys()
    assert all(torch.equal(gradients[name], expected[1][name]) for name in gradients)


@RECOMPUTING
@pytest.mark.parametrize("dropout", [0.0, 0.2])  # with dropout, by peft's own code
@pytest.mark.parametrize("attention", [cpu.NAME, "sdpa"])
def test_adapters_and_their_dropout(attention: str, dropout: float, mode: Checkpointing):
    lora = LoraConfig(lora_dropout=dropout, **LORA)
    expected = train(get_peft_model(build_family("llama", attention), lora), OFF)
    losses, gradients = train(get_peft_model(build_family("llama", attention), lora), mode)
    assert losses == expected[0]
    assert all("lora_" in name for name in gradients)
    assert all(torch.equal(gradients[name], expected[1][name]) for name in expected[1])


def count_layers(model: Any) -> int:
    return sum(layer.gradient_checkpointing for layer in model.model.layers)


def test_every_second_and_every_fourth_layer():
    model = build_family("llama", num_hidden_layers=6)
    counts = {}
    for mode in (FULL, *MODES, find_checkpointing("every_3")):
        mode.apply(model)
        counts[mode.name] = count_layers(model)
        assert counts[mode.name] == 6 * (mode.share_products(6) if not mode.keeps_products else 1)
    assert counts == {"full": 6, "off": 0, "selective": 6, "every_4": 2, "every_2": 3, "every_3": 2}


@pytest.mark.parametrize("name", ["every_1", "every_0", "every_", "selectiv", "every_02"])
def test_what_is_no_mode_is_refused(name: str):
    with pytest.raises(ValueError, match="is none of off, auto, selective, every_4, every_2, full, or every_N"):
        find_checkpointing(name)


def test_layers_that_cannot_be_told_apart():
    class Whole(torch.nn.Module):
        def gradient_checkpointing_enable(self, options: Any) -> None: ...

        def disable_input_require_grads(self) -> None: ...

    with pytest.raises(UserError, match="every_2 is not possible: the layers of Whole are not checkpointed one by one"):
        find_checkpointing("every_2").apply(Whole())


def run_operators(model: Any, names: list[str]) -> None:
    """Note the operators of a step, by name, those of the recomputation with a mark."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Note(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(func.name().split(".")[0])
            return func(*args, **(kwargs or {}))

    with Note():
        loss = model(**make_batch("packed"), use_cache=False).loss
        names.append("backward")
        loss.backward()


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("attention", [cpu.NAME, "sdpa", "eager"])
def test_what_selective_computes_again(attention: str, adapted: bool):
    """Norms, and no attention. Products of the backward pass are as many as without checkpointing."""

    def build() -> Any:
        model = build_family("qwen2", attention)
        return get_peft_model(model, LoraConfig(**LORA)) if adapted else model

    stored: list[str] = []
    run_operators(build(), stored)
    model = build()
    find_checkpointing("selective").apply(model)
    names: list[str] = []
    run_operators(model, names)
    split, stored_split = names.index("backward"), stored.index("backward")
    norm = "redline::add_rms_norm" if attention == cpu.NAME else "aten::rsqrt"
    assert names[split:].count(norm) > stored[stored_split:].count(norm)
    for name in KEPT:
        assert names.count(name) == stored.count(name), name
    assert sum(names.count(name) for name in KEPT) > 10


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_flops_of_fused_layers_are_those_executed(mode: Checkpointing, adapted: bool):
    model = build_family("llama", cpu.NAME)
    model = get_peft_model(model, LoraConfig(**LORA)) if adapted else model
    mode.apply(model)
    batch = make_batch("packed")
    counted = ModelFlops.from_model(model).count([1, 20, 19, 33, 7], 80, 80, rows=2)
    executed = measure_flops(lambda: model(**batch, use_cache=False).loss.backward())
    assert counted.hardware == pytest.approx(executed, rel=0.005)


def test_attention_kernels_are_kept_and_their_backward_passes_are_not():
    aten = torch.ops.aten
    assert is_kept(aten.mm.default) and not is_kept(aten.mm.out)
    assert is_kept(aten._scaled_dot_product_flash_attention.default)
    assert not is_kept(aten._scaled_dot_product_flash_attention_backward.default)
    assert is_kept(torch.ops.redline.attention.default) and not is_kept(torch.ops.redline.attention_backward.default)
    assert not is_kept(torch.ops.redline.swiglu.default)
