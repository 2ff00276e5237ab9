"""Adapters within fused layers train as peft's own do, and frozen weights cost what they must and no more."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config

from tests.models.test_fused import build_family, check_same, find_norm, make_batch, run
from tests.models.tiny import SHAPE, VOCAB_SIZE, build_tiny
from training.activations.modes import FULL, OFF
from training.attention import cpu
from training.kernels.cpu import build
from training.loss.choose import install_loss
from training.loss.terms import PLAIN
from training.metrics.flops import measure_flops
from training.models import projections
from training.models.fused import find_casts, fuse_layers

RANK = 4
TOKENS = 2 * 40


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    if obstacle := build.load():
        pytest.skip(obstacle)


def adapt(model: Any, targets: Any = "all-linear", **fields: Any) -> Any:
    torch.manual_seed(2)
    lora = LoraConfig(r=RANK, lora_alpha=6, target_modules=targets, init_lora_weights=False, **fields)
    return get_peft_model(model, lora).train()


def count_products(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How many times so many adapters were multiplied with their base."""
    counts: Counter[int] = Counter()
    computed = projections._Frozen.apply

    def apply(x: Any, group: Any, *rest: Any) -> Any:
        counts[sum(one.adapter is not None for one in group)] += 1
        return computed(x, group, *rest)

    monkeypatch.setattr(projections._Frozen, "apply", apply)
    return counts


@pytest.mark.parametrize(
    ("targets", "fields", "products"),
    [
        ("all-linear", {}, {3: 2, 1: 4, 2: 2}),
        (["q_proj", "v_proj"], {}, {2: 2, 0: 6}),
        (["k_proj", "gate_proj", "down_proj"], {"use_rslora": True}, {1: 6, 0: 2}),
        (["q_proj", "up_proj"], {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"up_proj": 11}}, {1: 4, 0: 4}),
        # the rest is peft's
        (["q_proj", "up_proj", "down_proj"], {"use_dora": True}, {0: 6}),
        (["q_proj", "up_proj", "down_proj"], {"lora_bias": True}, {0: 6}),
    ],
    ids=str,
)
def test_adapters_of_all_kinds_get_the_gradients_that_peft_gives_them(
    targets: Any, fields: dict[str, Any], products: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch("packed")
    expected = run(adapt(build_family("llama with biases"), targets, **fields), batch)
    counts = count_products(monkeypatch)
    check_same(run(adapt(build_family("llama with biases", cpu.NAME), targets, **fields), batch), expected)
    assert counts == products


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_bfloat16_is_as_close_to_float32_as_peft_is(family: str) -> None:
    batch = make_batch("packed")
    loss, grads = run(adapt(build_family(family)), batch)
    errors = []
    for implementation in ("sdpa", cpu.NAME):
        model = adapt(build_family(family, implementation))
        for name, parameter in model.named_parameters():  # as a run has it: the base in 16 bits, adapters in 32
            if "lora_" not in name:
                parameter.data = parameter.data.bfloat16()
        other_loss, others = run(model, batch, torch.bfloat16)
        assert {grad.dtype for grad in others.values()} == {torch.float32}
        difference = find_norm({name: others[name] - grad for name, grad in grads.items()})
        errors.append((abs(other_loss - loss), difference / find_norm(grads)))
    (stock_loss, stock_grads), (fused_loss, fused_grads) = errors
    assert 0 < fused_grads <= 1.5 * stock_grads
    assert fused_loss <= 2 * stock_loss + 2e-3


def test_a_model_of_16_bits_without_autocast_leaves_32_bit_adapters_to_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = count_products(monkeypatch)
    model = adapt(build_family("llama", cpu.NAME).bfloat16())
    run(model, make_batch("whole"))
    assert not counts


def test_checkpointing_changes_nothing() -> None:
    batch = make_batch("packed")
    expected = run(adapt(build_family("qwen2", cpu.NAME)), batch)
    model = adapt(build_family("qwen2", cpu.NAME))
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    check_same(run(model, batch), expected)


def disable(model: Any) -> None:
    model.base_model.disable_adapter_layers()


def merge(model: Any) -> None:
    model.merge_adapter()


def merge_and_unmerge(model: Any) -> None:
    model.merge_adapter()
    run_without_gradients(model)
    model.unmerge_adapter()


def merge_and_disable(model: Any) -> None:
    model.merge_adapter()
    model.base_model.disable_adapter_layers()


def add_second(model: Any) -> None:
    torch.manual_seed(3)
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "second"])


def take_second(model: Any) -> None:
    add_second(model)
    model.set_adapter("second")


def run_without_gradients(model: Any) -> float:
    batch = make_batch("whole")
    with torch.no_grad():
        return model(**batch, use_cache=False).loss.item()


@pytest.mark.parametrize("change", [disable, merge, merge_and_unmerge, merge_and_disable, add_second, take_second])
def test_what_is_done_to_adapters_is_seen_by_the_next_forward_pass(change: Callable[[Any], None]) -> None:
    losses = []
    for implementation in ("sdpa", cpu.NAME):
        model = adapt(build_family("qwen2", implementation)).eval()
        before = run_without_gradients(model)
        change(model)
        losses.append((before, run_without_gradients(model)))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    changes_nothing = change in (merge, merge_and_unmerge)
    assert (losses[0][1] == pytest.approx(losses[0][0], rel=1e-5)) == changes_nothing


def test_two_adapters_at_once_get_the_gradients_that_peft_gives_them() -> None:
    results = []
    for implementation in ("sdpa", cpu.NAME):
        model = adapt(build_family("qwen2", implementation))
        add_second(model)
        results.append(run(model, make_batch("packed")))
    check_same(results[1], results[0])
    assert any("second" in name for name in results[0][1])


def test_dropout_is_pefts_in_training_and_nobodys_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapt(build_family("qwen2", cpu.NAME), lora_dropout=0.5)
    counts = count_products(monkeypatch)
    assert len({run_without_gradients(model) for _ in range(2)}) == 2
    assert not counts
    assert run_without_gradients(model.eval()) == run_without_gradients(model)
    assert counts == {3: 4, 1: 8, 2: 4}


def test_adapters_are_saved_as_peft_saves_them(tmp_path: Path) -> None:
    for name, implementation in (("stock", "sdpa"), ("fused", cpu.NAME)):
        model = adapt(build_family("qwen2", implementation))
        run_without_gradients(model)
        model.save_pretrained(tmp_path / name)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "fused" / name).read_bytes() == (tmp_path / "stock" / name).read_bytes()


@pytest.mark.parametrize("fuses", [True, False])
@pytest.mark.parametrize("loss_kernel", ["chunked", "plain"])
def test_frozen_weights_get_no_gradient_computed(fuses: bool, loss_kernel: str) -> None:
    """FLOPs of a step, by hand: 2 in out a token for each product that must be, and no other."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(Qwen2Config(**SHAPE), attn_implementation=cpu.NAME)
    adapted = adapt(model)
    if fuses:
        fuse_layers(adapted, "on")
    install_loss(adapted, loss_kernel, PLAIN, device_type="cpu")
    batch = make_batch("whole")
    measured = measure_flops(lambda: run(adapted, batch), flash_recompute=False)
    measured -= count_attention()

    width, kv, mlp = 64, 32, 96
    shapes = [(width, width), (width, kv), (width, kv), (width, width), (width, mlp), (width, mlp), (mlp, width)]
    base = sum(inner * outer for inner, outer in shapes)
    low = RANK * sum(inner + outer for inner, outer in shapes)
    # The input of the first layer needs no gradient: none passes through its q, k and v, nor their A.
    first = sum(inner * outer + RANK * inner for inner, outer in shapes[:3])
    per_token = 2 * (2 * base + 3 * low) - first
    head_tokens = TOKENS - 2 if loss_kernel == "chunked" else TOKENS  # a row's last token has no loss
    assert measured == 2 * (TOKENS * per_token + head_tokens * 2 * width * VOCAB_SIZE)


def count_attention() -> int:
    """Of two layers, four heads of 16, causal pairs: two products forward and four backward."""
    pairs = 2 * 40 * 41 // 2
    return 2 * 6 * 2 * 4 * 16 * pairs


def test_frozen_weights_are_not_copied() -> None:
    """Those of the type that is computed in."""
    model = adapt(build_family("qwen2", cpu.NAME))
    casts = find_casts(model)
    assert casts is not None
    casts.keeps = True
    run(model, make_batch("packed"))
    assert not casts._kept
    run(model, make_batch("packed"), torch.bfloat16)
    assert len(casts._kept) == 2 * (7 + 3)  # weights, and the biases of q, k and v


class Unpacking:
    """Types of the 4-bit weights that were unpacked, and how many of these copies lived at once, in place of
    bitsandbytes' operator, which it calls."""

    def __init__(self) -> None:
        self.dtypes: list[torch.dtype] = []
        self.live: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
        self.most = 0
        self._unpack = torch.ops.bitsandbytes.dequantize_4bit.default

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        unpacked = self._unpack(*args, **kwargs)
        self.dtypes.append(unpacked.dtype)
        self.live.add(unpacked)
        self.most = max(self.most, len(self.live))
        return unpacked


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("fuses", [True, False])
def test_4bit_weights_are_unpacked_once_each_way_and_one_at_a_time(
    fuses: bool, checkpointing: bool, qwen_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = {"method": "lora", "r": RANK, "dropout": 0.0, "load_in_4bit": True}
    sections = {"path": str(qwen_dir), "attn_implementation": cpu.NAME}
    model = build_tiny(sections, lora, dtype=torch.bfloat16, checkpointing=FULL if checkpointing else OFF).train()
    if fuses:
        fuse_layers(model, "on")
    unpacking = Unpacking()
    monkeypatch.setattr(torch.ops.bitsandbytes.dequantize_4bit, "default", unpacking)
    _, grads = run(model, make_batch("whole"), torch.bfloat16)
    assert len(grads) == 2 * 2 * 7
    products = 2 * 7
    backward = products - 3  # the input of the first q, k and v needs no gradient
    assert len(unpacking.dtypes) == products + backward + checkpointing * products
    assert unpacking.most == 1 and not unpacking.live
    assert set(unpacking.dtypes) == {torch.bfloat16}  # in another type the backward pass would make a second copy


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "adapters: within the fused layers"),
        ({"lora_dropout": 0.05}, "adapters: by peft's own code (with dropout, 0.05, not 0)"),
        ({"use_dora": True}, "adapters: by peft's own code (of another kind, DoraLinearVariant)"),
    ],
    ids=str,
)
def test_the_log_says_who_computes_adapters(
    fields: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    model: Any = AutoModelForCausalLM.from_config(Qwen2Config(**SHAPE), attn_implementation=cpu.NAME)
    with caplog.at_level("INFO"):
        fuse_layers(adapt(model, **fields), "on")
    assert words in caplog.text
