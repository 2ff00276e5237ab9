"""Fused layers train as the model's own do: losses, gradients, steps, adapters, checkpointing, saving, generation."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from data_prep.errors import UserError
from tests.models.tiny import SHAPE, VOCAB_SIZE, generate_greedily
from training.attention import cpu
from training.kernels.cpu import build
from training.models import fused
from training.models.fused import CastWeights, find_casts, find_obstacle, fuse_layers
from training.models.minigpt import MiniGPTConfig

CONFIGS: dict[str, Callable[..., Any]] = {
    "llama": LlamaConfig,
    "llama with biases": lambda **fields: LlamaConfig(attention_bias=True, mlp_bias=True, **fields),
    "mistral": lambda **fields: MistralConfig(sliding_window=7, **fields),
    "qwen2": Qwen2Config,
    "qwen2 with a window": lambda **fields: Qwen2Config(
        use_sliding_window=True, sliding_window=7, max_window_layers=1, **fields
    ),
    "qwen3": lambda **fields: Qwen3Config(head_dim=16, **fields),
    "minigpt": MiniGPTConfig,
}
FAMILIES = pytest.mark.parametrize("family", CONFIGS)
TOKENS = 40


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    if obstacle := build.load():
        pytest.skip(obstacle)


def build_family(family: str, implementation: str = "sdpa", **fields: Any) -> Any:
    """The same weights for each implementation; fused where it is ours. No weight is one that hides a mistake."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(
        CONFIGS[family](**(SHAPE | fields)), attn_implementation=implementation
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.dim() == 1 else 0.1
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
    if implementation == cpu.NAME:
        fuse_layers(model, "on")
    return model.train()


def make_batch(kind: str) -> dict[str, Any]:
    """Two rows of `TOKENS`: whole, packed, or padded on either side."""
    ids = torch.randint(3, VOCAB_SIZE, (2, TOKENS), generator=torch.Generator().manual_seed(7))
    batch: dict[str, Any] = {"input_ids": ids, "labels": ids.clone()}
    if kind == "packed":
        lengths = [[1, 20, 19], [33, 7]]
        batch["position_ids"] = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    elif kind.startswith("padded"):
        mask = torch.ones_like(ids)
        mask[0, slice(-13, None) if kind == "padded right" else slice(13)] = 0
        batch |= {"attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    return batch


def run(model: Any, batch: dict[str, Any], dtype: torch.dtype = torch.float32) -> tuple[float, dict[str, Tensor]]:
    """The loss and the gradients by name."""
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        loss = model(**batch, use_cache=False).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def train(model: Any, steps: int = 20) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and weights of AdamW under bfloat16, two micro-batches a step that share casts, as in a run."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    casts = find_casts(model) or CastWeights()
    losses = []
    for step in range(steps):
        casts.clear()
        casts.keeps = True
        for kind in ("packed", "whole"):
            ids = torch.randint(3, VOCAB_SIZE, (2, TOKENS), generator=torch.Generator().manual_seed(step))
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(**make_batch(kind) | {"input_ids": ids, "labels": ids}, use_cache=False).loss / 2
            loss.backward()
            losses.append(2 * loss.item())
        optimizer.step()
        optimizer.zero_grad()
        casts.keeps = False
        casts.clear()
    return losses, {name: parameter.detach() for name, parameter in model.named_parameters()}


def check_same(found: tuple[float, dict[str, Tensor]], expected: tuple[float, dict[str, Tensor]]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert found[1].keys() == expected[1].keys()
    floor = 1e-6 * find_norm(expected[1])
    for name, grad in expected[1].items():
        assert (found[1][name] - grad).norm() <= 1e-5 * grad.norm() + floor, name


def find_norm(grads: dict[str, Tensor]) -> float:
    return float(torch.stack([grad.norm() for grad in grads.values()]).norm())


def count_fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Gets an entry for each time that a fused layer computed itself."""
    calls: list[str] = []
    computed = fused.add_rms_norm

    def add_rms_norm(x: Any, delta: Any, *rest: Any) -> Any:
        if delta is not None:
            calls.append("layer")
        return computed(x, delta, *rest)

    monkeypatch.setattr(fused, "add_rms_norm", add_rms_norm)
    return calls


@FAMILIES
@pytest.mark.parametrize("kind", ["whole", "packed", "padded right", "padded left"])
def test_losses_and_gradients_are_those_of_the_models_own_layers(family: str, kind: str, monkeypatch: Any):
    batch = make_batch(kind)
    expected = run(build_family(family), batch)
    calls = count_fused_calls(monkeypatch)
    check_same(run(build_family(family, cpu.NAME), batch), expected)
    assert len(calls) == 2


@FAMILIES
def test_bfloat16_is_as_close_to_float32_as_the_models_own_layers_are(family: str):
    batch = make_batch("packed")
    stock = build_family(family)
    loss, grads = run(stock, batch)
    errors = []
    for model in (stock, build_family(family, cpu.NAME)):
        other_loss, others = run(model, batch, torch.bfloat16)
        assert {grad.dtype for grad in others.values()} == {torch.float32}
        difference = find_norm({name: others[name] - grad for name, grad in grads.items()})
        floor = 1e-2 * find_norm(grads)
        each = {name: float((others[name] - grad).norm() / max(grad.norm(), floor)) for name, grad in grads.items()}
        errors.append((abs(other_loss - loss), difference / find_norm(grads), each))
    (stock_loss, stock_grads, stock_each), (fused_loss, fused_grads, fused_each) = errors
    assert 0 < fused_grads <= 2 * stock_grads
    assert fused_loss <= 2 * stock_loss + 2e-3
    assert all(error <= 2 * stock_each[name] + 0.02 for name, error in fused_each.items())


@FAMILIES
def test_five_steps_lead_to_the_same_weights(family: str):
    """A fused AdamW changes weights without a trace: with casts that were kept the losses would differ."""
    batch = make_batch("padded right")
    results = []
    for implementation in ("sdpa", cpu.NAME):
        model = build_family(family, implementation)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-4, fused=True)
        losses = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = model(**batch, use_cache=False).loss
            loss.backward()
            losses.append(loss.item())
            optimizer.step()
        results.append((losses, model.state_dict()))
    (losses, weights), (fused_losses, fused_weights) = results
    assert losses[-1] < losses[0]
    assert fused_losses == pytest.approx(losses, rel=1e-5)
    assert list(weights) == list(fused_weights)
    for name, weight in weights.items():
        torch.testing.assert_close(fused_weights[name], weight, rtol=1e-4, atol=1e-5, msg=name)


def test_twenty_steps_of_bfloat16_go_the_same_way():
    start = {name: value.detach().clone() for name, value in build_family("qwen2").named_parameters()}
    expected, others = train(build_family("qwen2"))
    losses, weights = train(build_family("qwen2", cpu.NAME))
    assert losses == pytest.approx(expected, abs=5e-3)
    assert losses[-1] != losses[0]
    moved = torch.cat([(others[name] - value).flatten() for name, value in start.items()]).norm()
    apart = torch.cat([(others[name] - weights[name]).flatten() for name in start]).norm()
    assert float(apart) < 0.2 * float(moved)


@FAMILIES
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"], ids=str)
def test_adapters_get_the_same_gradients(family: str, targets: Any, monkeypatch: Any):
    def adapt(model: Any) -> Any:
        torch.manual_seed(2)
        return get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))

    batch = make_batch("packed")
    expected = run(adapt(build_family(family)), batch)
    assert all("lora_" in name for name in expected[1])
    calls = count_fused_calls(monkeypatch)
    check_same(run(adapt(build_family(family, cpu.NAME)), batch), expected)
    assert len(calls) == 2
    adapted = get_peft_model(build_family(family, cpu.NAME), LoraConfig(r=4, target_modules=targets))
    _, grads = run(adapted, batch, torch.bfloat16)
    assert grads and all(grad.isfinite().all() for grad in grads.values())


@pytest.mark.parametrize("frozen", ["layers.0.", "k_proj", "norm", "gate_proj", "embed", "bias"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(frozen: str):
    batch = make_batch("whole")
    results = []
    for implementation in ("sdpa", cpu.NAME):
        model = build_family("llama with biases", implementation)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(frozen not in name)
        results.append(run(model, batch))
    assert not any(frozen in name for name in results[0][1])
    check_same(results[1], results[0])


@FAMILIES
def test_gradient_checkpointing_changes_nothing(family: str):
    batch = make_batch("packed")
    plain = run(build_family(family, cpu.NAME), batch)
    model = build_family(family, cpu.NAME)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    check_same(run(model, batch), plain)


@pytest.mark.parametrize("family", ["llama", "qwen3", "minigpt"])
def test_names_and_files_stay_what_they_were(family: str, tmp_path: Path):
    stock, model = build_family(family), build_family(family, cpu.NAME)
    assert list(model.state_dict()) == list(stock.state_dict())
    assert [name for name, _ in model.named_modules()] == [name for name, _ in stock.named_modules()]
    model.save_pretrained(tmp_path / "fused")
    stock.save_pretrained(tmp_path / "stock")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "fused" / name).read_bytes() == (tmp_path / "stock" / name).read_bytes()
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "fused", attn_implementation="sdpa").train()
    check_same(run(model, make_batch("whole")), run(again, make_batch("whole")))


@FAMILIES
@pytest.mark.parametrize("kind", ["whole", "padded left"])
@pytest.mark.parametrize("cache", [None, "static", False], ids=str)
def test_generated_tokens_are_those_of_the_models_own_layers(family: str, kind: str, cache: Any):
    batch = make_batch(kind)
    del batch["labels"]
    tokens = [generate_greedily(build_family(family, name), batch, cache) for name in ("sdpa", cpu.NAME)]
    assert torch.equal(*tokens)


@FAMILIES
def test_dropped_out_attention_is_computed_by_the_class_the_layer_had(family: str, monkeypatch: Any):
    batch = make_batch("packed")
    model = build_family(family, cpu.NAME, attention_dropout=0.5)
    calls = count_fused_calls(monkeypatch)
    losses = [run(model, batch)[0] for _ in range(2)]
    assert not calls
    assert losses[0] != losses[1]
    with torch.no_grad():
        loss = model.eval()(**batch, use_cache=False).loss.item()
    assert len(calls) == 2
    assert loss == pytest.approx(run(build_family(family), batch)[0], rel=1e-6)


def test_hooks_inside_a_layer_are_called(monkeypatch: Any):
    model, batch = build_family("llama", cpu.NAME), make_batch("whole")
    expected = run(model, batch)
    calls = count_fused_calls(monkeypatch)
    seen = []
    handle = model.model.layers[0].mlp.down_proj.register_forward_hook(lambda *given: seen.append(given[2].shape))
    check_same(run(model, batch), expected)
    assert len(calls) == 1 and len(seen) == 1
    handle.remove()
    outputs = model(**batch, use_cache=False, output_hidden_states=True)
    assert len(outputs.hidden_states) == 3
    check_same(run(model, batch), expected)
    assert len(calls) == 1 + 2 + 2


def test_a_sum_that_is_used_alone_has_a_gradient():
    """As of an auxiliary loss on hidden states."""
    batch = make_batch("whole")
    results = []
    for implementation in ("sdpa", cpu.NAME):
        model = build_family("llama", implementation)
        model(**batch, use_cache=False, output_hidden_states=True).hidden_states[1].sum().backward()
        results.append((0.0, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    check_same(results[1], results[0])


class TestCastWeights:
    def test_several_become_one(self):
        tensors = torch.randn(3, 4), torch.randn(2, 4)
        packed = CastWeights().get(tensors, torch.bfloat16)
        assert torch.equal(packed, torch.cat(tensors).bfloat16())

    def test_one_of_the_type_is_itself(self):
        weight = nn.Parameter(torch.randn(3, 4))
        cast = CastWeights().get((weight,), torch.float32)
        assert cast.data_ptr() == weight.data_ptr() and not cast.requires_grad

    def test_they_are_kept_where_asked_until_cleared(self):
        casts, weight = CastWeights(), nn.Parameter(torch.zeros(3, 4))
        first = casts.get((weight,), torch.bfloat16)
        assert casts.get((weight,), torch.bfloat16) is not first
        casts.keeps = True
        first = casts.get((weight,), torch.bfloat16)
        weight.data.fill_(1)
        assert casts.get((weight,), torch.bfloat16) is first
        assert not first.any()
        casts.clear()
        assert casts.get((weight,), torch.bfloat16).all()

    def test_layers_of_a_model_share_them(self):
        model = build_family("llama", cpu.NAME)
        casts = find_casts(model)
        assert casts is not None
        casts.keeps = True
        run(model, make_batch("whole"), torch.bfloat16)
        assert len(casts._kept) == 2 * 4  # QKV, o_proj, gate and up, down_proj of each layer
        run(model, make_batch("packed"), torch.bfloat16)
        assert len(casts._kept) == 2 * 4
        assert find_casts(build_family("llama")) is None


def test_a_model_that_is_not_fused_says_why(caplog: pytest.LogCaptureFixture):
    model = build_family("llama")
    with pytest.raises(UserError, match="perf.fused_layers: on is not possible: attention is sdpa, not redline_cpu"):
        fuse_layers(model, "on")
    with caplog.at_level(logging.INFO):
        fuse_layers(model, "auto")
    assert "layers: as the model has them (attention is sdpa, not redline_cpu)" in caplog.text
    assert type(model.model.layers[0]).__name__ == "LlamaDecoderLayer"


def test_compiled_layers_are_left_alone():
    model: Any = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), attn_implementation=cpu.NAME)
    with pytest.raises(UserError, match="perf.fused_layers: on is not possible: they are compiled"):
        fuse_layers(model, "on", is_compiled=True)
    assert find_casts(model) is None


def test_off_leaves_the_layers_alone():
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), attn_implementation=cpu.NAME)
    fuse_layers(model, "off")
    assert type(model.model.layers[0]).__name__ == "LlamaDecoderLayer"


@pytest.mark.parametrize(
    ("config", "partitioned", "words"),
    [
        (LlamaConfig(**SHAPE), True, "a rank holds parts of each weight"),
        (Gemma2Config(**SHAPE, head_dim=16), False, "its layers are of no class that is known here"),
        (LlamaConfig(**SHAPE, head_dim=24), False, "its head_dim of 24 is no multiple of 16"),
        (LlamaConfig(**SHAPE, hidden_act="gelu"), False, "its activation is gelu, not SwiGLU"),
        (MiniGPTConfig(**SHAPE, hidden_act="gelu"), False, "its activation is gelu, not SwiGLU"),
        (MiniGPTConfig(**SHAPE), False, None),
    ],
)
def test_what_keeps_layers_from_being_fused(config: Any, partitioned: bool, words: str | None):
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.config._attn_implementation_internal = cpu.NAME
    found = find_obstacle(model, partitioned=partitioned)
    assert found == words if words is None else words in (found or "")


def test_a_class_of_the_same_name_from_elsewhere_is_left_alone():
    model: Any = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), attn_implementation=cpu.NAME)
    elsewhere = {"__module__": "transformers_modules.someone.modeling_llama"}
    for layer in model.model.layers:
        layer.__class__ = type("LlamaDecoderLayer", (type(layer),), dict(elsewhere))
    assert find_obstacle(model) == "its layers are of no class that is known here"
