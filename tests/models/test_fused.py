"""Fused layers against the layers that they replace."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from data_prep.errors import UserError
from tests.models.tiny import SHAPE, VOCAB_SIZE, build_tiny
from training.attention import cpu
from training.kernels.cpu import build
from training.models.fused import CastWeights, find_casts, find_obstacle, fuse_layers

pytestmark = pytest.mark.skipif(build.find_obstacle() is not None, reason=str(build.find_obstacle()))

KINDS: dict[str, dict[str, Any]] = {
    "minigpt": {"kind": "minigpt", "config": SHAPE},
    **{
        kind: {"config": {"model_type": kind, **SHAPE, "head_dim": 16}}
        for kind in ("llama", "mistral", "qwen2", "qwen3")
    },
}


def build_pair(kind: str = "qwen2", attention: str = "sdpa", **fields: Any) -> tuple[Any, Any]:
    """(fused, as it was with the attention of that name), equal weights with biases and norms that matter."""
    recipe = KINDS[kind] | {"config": KINDS[kind]["config"] | fields}
    plain, fused = (build_tiny(recipe | {"attn_implementation": name}) for name in (attention, cpu.NAME))
    torch.manual_seed(5)
    for name, parameter in plain.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    fused.load_state_dict(plain.state_dict())
    fuse_layers(fused, "on")
    return fused.train(), plain.train()


def make_batch(kind: str = "whole", seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    ids = torch.randint(0, VOCAB_SIZE, (3, 40))
    batch = {"input_ids": ids, "labels": ids.clone(), "use_cache": False}
    if kind == "padded":
        mask = torch.arange(40)[None] < torch.tensor([[40], [33], [7]])
        batch["labels"][~mask] = -100
        batch |= {"attention_mask": mask.long(), "position_ids": torch.arange(40).expand(3, 40)}
    elif kind == "packed":
        batch["position_ids"] = torch.tensor([[*range(13), *range(27)], [*range(40)], [*range(1), *range(39)]])
    return batch


def differentiate(model: Any, batch: dict[str, Any], *, bf16: bool = False) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(**batch).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def find_errors(grads: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> dict[str, float]:
    assert grads.keys() == exact.keys()
    whole = float(torch.stack([grad.norm() for grad in exact.values()]).norm())
    return {
        name: float((grads[name] - exact[name]).norm() / max(float(exact[name].norm()), 1e-2 * whole)) for name in exact
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", ["whole", "padded", "packed"])
def test_loss_and_gradients_are_those_of_the_layers_it_replaces(kind: str, batch: str) -> None:
    fused, plain = build_pair(kind)
    loss, grads = differentiate(fused, make_batch(batch))
    expected, exact = differentiate(plain, make_batch(batch))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert max(find_errors(grads, exact).values()) < 2e-5


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_it_is_as_near_to_float32_as_they_are(kind: str) -> None:
    fused, plain = build_pair(kind)
    expected, exact = differentiate(plain, make_batch())
    theirs = differentiate(plain, make_batch(), bf16=True)
    ours = differentiate(fused, make_batch(), bf16=True)
    assert abs(ours[0] - expected) <= 2 * abs(theirs[0] - expected) + 2e-3
    limits = find_errors(theirs[1], exact)
    assert all(error <= 2 * limits[name] + 0.02 for name, error in find_errors(ours[1], exact).items())


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"])
def test_adapters_train_the_same(targets: Any) -> None:
    fused, plain = build_pair()
    results = []
    for model in (fused, plain):
        torch.manual_seed(2)
        adapted: Any = get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
        results.append(differentiate(adapted.train(), make_batch("packed")))
        assert all("lora" in name for name in results[-1][1])
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    assert max(find_errors(results[0][1], results[1][1]).values()) < 2e-5


def test_frozen_weights_get_no_gradient_and_the_others_the_same() -> None:
    fused, plain = build_pair()
    for model in (fused, plain):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("k_proj" in name or "down_proj" in name or name == "model.norm.weight")
    (_, grads), (_, exact) = (differentiate(model, make_batch()) for model in (fused, plain))
    assert max(find_errors(grads, exact).values()) < 1e-4


def test_checkpointing_changes_nothing() -> None:
    fused, _ = build_pair()
    expected = differentiate(fused, make_batch(), bf16=True)
    fused.gradient_checkpointing_enable({"use_reentrant": False})
    again = differentiate(fused, make_batch(), bf16=True)
    assert again[0] == expected[0]
    assert all(torch.equal(grad, expected[1][name]) for name, grad in again[1].items())


def train(model: Any, steps: int = 20, rows: int = 2) -> tuple[list[float], Any]:
    """Losses of AdamW under bf16 with two micro-batches a step, casts shared as the callback does it."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    casts = find_casts(model)
    losses = []
    for step in range(steps):
        if casts is not None:
            casts.clear()
            casts.keeps = True
        for micro in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(**make_batch("packed", seed=2 * step + micro)).loss / 2
            loss.backward()
            losses.append(2 * loss.item())
        optimizer.step()
        optimizer.zero_grad()
        if casts is not None:
            casts.keeps = False
            casts.clear()
    return losses, {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_training_goes_the_same_way() -> None:
    fused, plain = build_pair()
    before = {name: parameter.detach().clone() for name, parameter in plain.named_parameters()}
    losses, weights = train(fused)
    expected, others = train(plain)
    assert losses == pytest.approx(expected, abs=5e-3)
    assert losses[-1] != losses[0]
    moved = torch.cat([(others[name] - start).flatten() for name, start in before.items()]).norm()
    apart = torch.cat([(others[name] - weights[name]).flatten() for name in before]).norm()
    assert float(apart) < 0.2 * float(moved)


def test_casts_kept_over_a_change_of_weights_would_be_stale() -> None:
    """What `clear` is for: a fused optimizer leaves no trace of its changes."""
    fused, _ = build_pair()
    casts = find_casts(fused)
    assert casts is not None
    casts.keeps = True
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        before = fused(**make_batch()).loss.item()
        for parameter in fused.model.layers.parameters():
            if parameter.dim() == 2:
                parameter.mul_(1.5)
        stale = fused(**make_batch()).loss.item()
        casts.clear()
        fresh = fused(**make_batch()).loss.item()
    assert stale == before != fresh


def test_casts_pack_weights_side_by_side() -> None:
    casts = CastWeights()
    first, second = torch.randn(2, 3), torch.randn(4, 3)
    packed = casts.get((first, second), torch.bfloat16)
    assert torch.equal(packed, torch.cat((first, second)).bfloat16())
    assert casts.get((first, second), torch.bfloat16) is not packed
    casts.keeps = True
    kept = casts.get((first, second), torch.bfloat16)
    assert casts.get((first, second), torch.bfloat16) is kept
    assert casts.get((first,), torch.float32).data_ptr() == first.data_ptr()  # nothing to do


def test_names_and_saved_files_stay_the_stock_ones(tmp_path: Any) -> None:
    fused, plain = build_pair()
    assert list(fused.state_dict()) == list(plain.state_dict())
    fused.save_pretrained(tmp_path)
    again = type(plain).from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in fused.state_dict().items())
    copied = copy.deepcopy(fused)
    assert differentiate(copied, make_batch())[0] == differentiate(fused, make_batch())[0]


def test_generation_writes_the_same_tokens() -> None:
    fused, plain = build_pair()
    ids = torch.randint(3, VOCAB_SIZE, (2, 9))
    written = [
        model.eval().generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, pad_token_id=0
        )
        for model in (fused, plain)
    ]
    assert torch.equal(*written)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"config": {"model_type": "gpt_neox", "hidden_size": 64, "num_hidden_layers": 1}}, "no class that is known"),
        (KINDS["qwen2"] | {"attn_implementation": "sdpa"}, "attention is sdpa, not redline_cpu"),
        ({"config": {"model_type": "qwen2", **SHAPE, "hidden_size": 32, "head_dim": 8}}, "head_dim of 8"),
        ({"kind": "minigpt", "config": SHAPE | {"hidden_act": "gelu"}}, "its activation is gelu"),
    ],
)
def test_what_cannot_be_fused_is_said_or_refused(recipe: dict[str, Any], words: str, caplog: Any) -> None:
    model = build_tiny(recipe)
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(UserError, match=f"perf.fused_layers: on is not possible: .*{words}"):
        fuse_layers(model, "on")
    with caplog.at_level("INFO", logger="redline.models"):
        fuse_layers(model, "auto")
    assert words in caplog.messages[-1]
    assert [type(module) for module in model.modules()] == kinds


def test_partitioned_and_compiled_layers_are_left_alone() -> None:
    model = build_tiny(KINDS["qwen2"])
    assert "a rank holds parts" in str(find_obstacle(model, partitioned=True))
    with pytest.raises(UserError, match="they are compiled"):
        fuse_layers(model, "on", is_compiled=True)
    fuse_layers(model, "off")
    assert find_casts(model) is None
