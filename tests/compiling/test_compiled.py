"""Compiled training: losses of the uncompiled one, one graph for all batches, and the same names in `state_dict`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from tests.models.tiny import SHAPE, VOCAB_SIZE, build_tiny
from training.activations.modes import find_checkpointing
from training.compiling.compiled import BatchShapes, CompiledCall
from training.compiling.counts import count_compilations
from training.compiling.install import install_compile
from training.loss.choose import install_loss

LENGTH = 32
STEPS = 20


def build(kind: str, *, lora: bool = False, checkpointing: str = "off") -> Any:
    torch.manual_seed(0)
    shape = {"kind": "minigpt", "config": SHAPE} if kind == "minigpt" else {"config": {"model_type": kind, **SHAPE}}
    model = build_tiny(shape | {"attn_implementation": "sdpa"})  # whole graphs; ours ends them
    if lora:
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    install_loss(model, "auto", device_type="cpu")
    if checkpointing != "off":
        find_checkpointing(checkpointing).apply(model)
    return model.train()


def packed_batch(step: int) -> dict[str, Any]:
    """Documents of another length in each batch; in each fifth batch one document a row, which needs no mask."""
    positions = torch.arange(LENGTH).repeat(2, 1)
    if step % 5 != 1:
        positions[:, 7 + step % 9 :] -= 7 + step % 9
    return finish_batch(step, positions)


def padded_batch(step: int) -> dict[str, Any]:
    """Another length in each batch; in each third no row is padded."""
    length = 8 * (1 + (5 * step + 3) % 7)
    batch = finish_batch(step, torch.arange(length).repeat(2, 1))
    if step % 3:
        batch["attention_mask"] = torch.ones(2, length, dtype=torch.long)
        batch["attention_mask"][1, -3:] = 0
    return batch


def finish_batch(step: int, positions: torch.Tensor) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(step)
    ids = torch.randint(VOCAB_SIZE, positions.shape, generator=draw)
    items = torch.tensor(ids.numel() - 2)
    return {"input_ids": ids, "labels": ids, "position_ids": positions, "num_items_in_batch": items, "use_cache": False}


def train(model: Any, batch: Any, *, bf16: bool = False) -> tuple[list[float], list[int]]:
    """Losses, an evaluation after every fourth step among them, and how much was compiled until each step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    losses, frames = [], []
    for step in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**batch(step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        frames.append(count_compilations().frames)
        if step % 4 == 3:
            model.eval()
            with torch.no_grad():
                losses.append(model(**batch(100 + step)).loss.item())
            model.train()
    return losses, frames


CASES: dict[str, tuple[str, str, Any, dict[str, Any], float]] = {
    "packed": ("minigpt", "blocks", packed_batch, {}, 1e-5),
    "padded, LoRA, checkpointing": ("qwen2", "blocks", padded_batch, {"lora": True, "checkpointing": "full"}, 1e-5),
    "padded, whole model": ("minigpt", "model", padded_batch, {}, 1e-5),
    "packed, bf16, selective": ("qwen2", "blocks", packed_batch, {"checkpointing": "selective"}, 2e-3),
    "packed, every second layer": ("minigpt", "blocks", packed_batch, {"checkpointing": "every_2"}, 1e-5),
}


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings(
    "default::UserWarning", "default::DeprecationWarning", "default::FutureWarning"
)  # dynamo's own
@pytest.mark.parametrize(("kind", "mode", "batch", "options", "bound"), CASES.values(), ids=list(CASES))
def test_trains_the_same_and_compiles_in_the_first_step_only(kind, mode, batch, options, bound, fresh_compiler):
    plain, model = build(kind, **options), build(kind, **options)
    names = list(model.state_dict())
    install_compile(model, mode, BatchShapes(2, LENGTH, varies_length=batch is padded_batch), device_type="cpu")
    expected, none = train(plain, batch, bf16=bound > 1e-4)
    assert none[-1] == 0
    losses, frames = train(model, batch, bf16=bound > 1e-4)
    assert frames[0] > 0 and len(set(frames)) == 1, frames
    assert count_compilations().graph_breaks == 0
    assert losses == pytest.approx(expected, abs=bound)
    assert list(model.state_dict()) == names


def stand_in(model: Any, shapes: BatchShapes, attention: str = "sdpa") -> list[dict[str, Any]]:
    """Compiles nothing; what would have been called gets its arguments noted."""
    noted: list[dict[str, Any]] = []
    call = CompiledCall(model, shapes, attention)

    def note(*args: Any, **kwargs: Any) -> Any:
        noted.append(kwargs)
        return args[0]

    call._compiled = note
    call.install()
    return noted


class Layer(torch.nn.Module):
    """Gives its input back."""

    def forward(self, hidden: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return hidden


def test_what_differs_from_batch_to_batch_does_not_reach_a_layer():
    layer = Layer()
    noted = stand_in(layer, BatchShapes(2, 8))
    bounds = torch.tensor([0, 3, 8, 16])
    layer(torch.ones(2, 8, 4), attention_mask=None, cu_seq_lens_q=bounds, max_length_q=5, num_items_in_batch=3)
    assert noted[0]["attention_mask"].shape == (2, 1, 8, 8) and noted[0]["attention_mask"][0, 0].sum() == 36
    assert noted[0]["max_length_q"] == 8 and "num_items_in_batch" not in noted[0]
    assert vars(bounds)["_dynamo_weak_dynamic_indices"] == {0}


@pytest.mark.parametrize("attention", ["flash_attention_2", "eager"])
def test_other_kernels_get_no_mask(attention):
    layer = Layer()
    noted = stand_in(layer, BatchShapes(2, 8), attention)
    layer(torch.ones(2, 8, 4), attention_mask=None)
    assert noted[0]["attention_mask"] is None


def test_what_no_graph_is_made_for_runs_uncompiled():
    layer = Layer()
    noted = stand_in(layer, BatchShapes(2, 8))
    with torch.no_grad():
        layer(torch.ones(2, 8, 4))  # an evaluation
    layer(torch.ones(1, 8, 4))
    layer(torch.ones(2, 5, 4))
    with FlopCounterMode(display=False):
        layer(torch.ones(2, 8, 4))
    assert not noted
    layer(torch.ones(2, 8, 4))
    assert len(noted) == 1


@pytest.mark.parametrize(
    ("shapes", "covered", "others"),
    [
        (BatchShapes(2, 8), [(2, 8)], [(1, 8), (2, 7)]),
        (BatchShapes(1, 8, varies_length=True), [(1, 8), (1, 3)], [(2, 8)]),
        (BatchShapes(2, 8, varies_length=True, varies_rows=True), [(2, 8), (5, 3)], [(1, 8)]),
    ],
)
def test_batches_that_a_graph_is_for(shapes, covered, others):
    assert all(shapes.covers(*one) for one in covered) and not any(shapes.covers(*one) for one in others)
