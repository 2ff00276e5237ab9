"""A model whose loss needs no logits: losses, gradients and everything else as with its own loss."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.models.tiny import SHAPE, build_tiny
from training.loss.choose import install_loss
from training.loss.head import find_loss_head, find_obstacle
from training.loss.plain import next_token_loss
from training.loss.terms import LossTerms

# Two packed documents of 5 and 3 tokens, and a row of one with a prompt that carries no loss.
LABELS = torch.tensor([[-100, 7, 3, 9, 1, -100, 4, 2], [-100, -100, -100, 5, 6, 7, 8, 9]])
POSITIONS = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 4, 5, 6, 7]])
IDS = torch.tensor([[5, 7, 3, 9, 1, 8, 4, 2], [1, 2, 3, 5, 6, 7, 8, 9]])
BATCH = {"input_ids": IDS, "position_ids": POSITIONS, "labels": LABELS, "use_cache": False}
KINDS = ["minigpt", "qwen2", "qwen3", "llama", "mistral", "tied"]


def build(kind: str) -> Any:
    torch.manual_seed(1)
    if kind == "minigpt":
        return build_tiny({"kind": "minigpt", "config": SHAPE})
    if kind == "tied":
        return build_tiny({"config": {"model_type": "qwen2", "tie_word_embeddings": True, **SHAPE}})
    return build_tiny({"config": {"model_type": kind, **SHAPE}})


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def check_equal(model: Any, other: Any, tolerance: float = 1e-5, **more: Any) -> None:
    """Loss and gradients of two models on one batch."""
    losses = [one(**BATCH, **more).loss for one in (model, other)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    for loss in losses:
        (3.0 * loss).backward()
    mine, theirs = gradients(model), gradients(other)
    assert mine.keys() == theirs.keys()
    for name, gradient in mine.items():
        assert (gradient - theirs[name]).norm() <= tolerance * theirs[name].norm() + 1e-8, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_items", [None, torch.tensor(24)])
def test_loss_and_gradients_are_the_model_s_own(kind, num_items):
    plain = build(kind)
    model = copy.deepcopy(plain)
    install_loss(model, "chunked", device_type="cpu")
    check_equal(model, plain, **({} if num_items is None else {"num_items_in_batch": num_items}))
    assert model(**BATCH).logits.shape == (2, 8, 0)


@pytest.mark.parametrize("kind", ["minigpt", "qwen2"])
def test_without_labels_nothing_differs(kind):
    plain = build(kind).eval()
    model = copy.deepcopy(plain)
    install_loss(model, "auto", device_type="cpu")
    model(**BATCH)  # leaves nothing behind
    assert torch.equal(model(input_ids=IDS).logits, plain(input_ids=IDS).logits)
    few = {"input_ids": IDS, "logits_to_keep": 2}
    assert torch.equal(model(**few).logits, plain(**few).logits)
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_other_terms_count_in_training_only():
    model, terms = build("qwen2"), LossTerms(0.1, 1e-2)
    plain = copy.deepcopy(model)
    install_loss(model, "chunked", terms, device_type="cpu")
    logits = plain(input_ids=IDS, position_ids=POSITIONS, use_cache=False).logits
    model.train()
    expected = next_token_loss(logits, LABELS, terms)
    assert model(**BATCH).loss.item() == pytest.approx(expected.item(), rel=1e-6)
    model.eval()
    assert model(**BATCH).loss.item() == pytest.approx(plain(**BATCH).loss.item(), rel=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_under_autocast_and_checkpointing(checkpointing):
    plain = build("qwen2").train()
    model = copy.deepcopy(plain)
    install_loss(model, "chunked", device_type="cpu")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with torch.autocast("cpu", torch.bfloat16):
        losses = [one(**BATCH).loss for one in (model, plain)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-3)
    for loss in losses:
        loss.backward()
    mine, theirs = gradients(model), gradients(plain)
    for name, gradient in mine.items():
        assert (gradient - theirs[name]).norm() <= 0.02 * theirs[name].norm() + 1e-6, name


LORA: dict[str, dict[str, Any]] = {
    "frozen head": {"target_modules": ["q_proj", "v_proj"]},
    "adapter on the head": {"target_modules": ["q_proj", "lm_head"]},
    "head saved beside the adapter": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("options", LORA.values(), ids=list(LORA))
def test_with_adapters(options):
    plain = get_peft_model(build("qwen2"), LoraConfig(r=4, init_lora_weights=False, **options))
    model = copy.deepcopy(plain)
    install_loss(model, "chunked", device_type="cpu")
    assert find_loss_head(model) is not None
    check_equal(model, plain)
    assert find_loss_head(plain) is None


class Chain(nn.Module):
    """A model that is none of transformers'."""


@pytest.mark.parametrize(
    ("model", "obstacle"),
    [
        (
            lambda: AutoModelForCausalLM.from_config(AutoConfig.for_model("cohere", **SHAPE)),
            "logit_scale",
        ),
        (lambda: nn.Sequential(), "NoneType, no Linear layer"),
        (
            lambda: get_peft_model(build("qwen2"), LoraConfig(r=2, lora_dropout=0.1, target_modules=["lm_head"])),
            "has dropout",
        ),
        (lambda: get_peft_model(build("qwen2"), LoraConfig(r=2, use_dora=True, target_modules=["lm_head"])), "DoRA"),
    ],
)
def test_what_keeps_a_model_from_it(model, obstacle):
    assert obstacle in str(find_obstacle(model()))


def test_a_head_that_a_caller_replaces_afterwards_is_not_called():
    """As `resize_token_embeddings` does: the loss is then the model's own again."""
    model = build("qwen2")
    install_loss(model, "chunked", device_type="cpu")
    model.resize_token_embeddings(40)
    assert model(**BATCH).logits.shape == (2, 8, 40)
