"""FLOPs against torch's own counter (corrections in `measure_flops`), and against numbers worked out by hand."""

import logging
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.metrics.decoders import CONFIGS, build_batch, build_decoder
from training.activations.modes import FULL, MODES
from training.attention import cpu
from training.kernels.cpu import build
from training.metrics.flops import ModelFlops, StepFlops, causal_pairs, count_grouped, measure_flops, square_pairs
from training.metrics.matmuls import find_matmuls

EXPERTS = ["qwen2_moe", "qwen3_moe", "mixtral"]
ARCHITECTURES = [name for name in CONFIGS if name not in EXPERTS]


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small cost more to share out than to multiply."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def relative_error(counted: int, measured: int) -> float:
    return abs(counted - measured) / measured


# -- against FlopCounterMode -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "checkpointed"])
@pytest.mark.parametrize("kind", ["whole", "padded", "packed"])
@pytest.mark.parametrize("method", ["full", "lora", "frozen_lower_half"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hardware_flops_equal_the_executed_ones(architecture, method, kind, checkpointing):
    model, batch = build_decoder(architecture, method), build_batch(kind)
    if checkpointing:
        model.gradient_checkpointing_enable()
    counted = ModelFlops.from_model(model).count(batch.document_lengths, batch.tokens, 0, rows=batch.rows)
    assert relative_error(counted.hardware, measure_flops(lambda: batch.step(model))) < 0.005


# Goes on after the last tensor that the backward pass needs.
WHOLE = replace(FULL, options=(("early_stop", False),))


@pytest.mark.parametrize("mode", [*MODES[1:], WHOLE], ids=["selective", "4", "2", "full", "whole"])
@pytest.mark.parametrize(
    ("architecture", "method"),
    [
        ("minigpt", "full"), ("minigpt_gelu", "lora"), ("qwen3", "dora"), ("qwen2", "frozen_lower_half"),
        ("gpt2_dropout", "full"), ("qwen3_moe", "full"),
    ],
)  # fmt: skip
def test_each_mode_of_checkpointing_computes_again_what_is_counted(architecture, method, mode):
    model, batch = build_decoder(architecture, method), build_batch("padded")
    stored = measure_flops(lambda: batch.step(model))
    mode.apply(model)
    counted = ModelFlops.from_model(model).count(batch.document_lengths, batch.tokens, 0, rows=batch.rows)
    executed = measure_flops(lambda: batch.step(model))
    assert relative_error(counted.hardware, executed) < 0.005
    again = executed - stored
    assert again == 0 if mode.keeps_products else again >= 0
    assert again > 0 or mode is not FULL


@pytest.mark.skipif(build.find_obstacle() is not None, reason=str(build.find_obstacle()))
@pytest.mark.parametrize("kind", ["whole", "padded", "packed"])
@pytest.mark.parametrize("window", [None, 5])
def test_attention_of_our_cpu_kernel_is_counted(kind, window):
    assert build.load() is None
    more = {} if window is None else {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0}
    shape = {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    model = Qwen2ForCausalLM(Qwen2Config(**shape, num_attention_heads=4, num_key_value_heads=2, **more)).train()
    model.set_attn_implementation(cpu.NAME)
    batch = build_batch(kind)
    counted = ModelFlops.from_model(model).count(batch.document_lengths, batch.tokens, 0, rows=batch.rows)
    assert relative_error(counted.hardware, measure_flops(lambda: batch.step(model))) < 0.005


@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "checkpointed"])
@pytest.mark.parametrize("method", ["lora_mlp", "lora_vo", "dora"])
@pytest.mark.parametrize("architecture", ["minigpt", "qwen3", "gemma2", "gpt2"])
def test_adapters_on_some_layers_and_dora(architecture, method, checkpointing):
    model, batch = build_decoder(architecture, method), build_batch("packed")
    if checkpointing:
        model.gradient_checkpointing_enable()
    counted = ModelFlops.from_model(model).count(batch.document_lengths, batch.tokens, 0, rows=batch.rows)
    assert relative_error(counted.hardware, measure_flops(lambda: batch.step(model))) < 0.005


@pytest.mark.parametrize("method", ["full", "lora", "lora_vo", "frozen_lower_half"])
@pytest.mark.parametrize("architecture", ["minigpt", "minigpt_gelu", "qwen2", "qwen3", "mistral", "gemma", "gpt2"])
def test_model_flops_of_a_packed_batch_are_those_of_its_documents_alone(architecture, method):
    model, batch = build_decoder(architecture, method), build_batch("packed")
    if architecture in ("mistral", "minigpt_gelu"):  # a window or eager executes the full square, which is no reference
        batch.document_lengths = [1, 1, 1]
    counted = ModelFlops.from_model(model).count(batch.document_lengths, batch.tokens, 0, rows=batch.rows)
    measured = measure_flops(lambda: batch.alone(model), flash_recompute=False)
    if method == "lora_vo":  # flash kernels compute the gradients of q and k in the lowest layer, needed or not
        assert counted.model <= measured < 1.05 * counted.model
    else:
        assert relative_error(counted.model, measured) < 0.005


def test_training_the_head_alone_has_no_backward_below_it():
    model = build_decoder("llama", "head_only")
    weights = 4 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 80)
    assert ModelFlops.from_model(model).count([1], 1, 1).model == 2 * weights + 4 * 32 * 96 + 4 * 32 * 4


@pytest.mark.parametrize("method", ["full", "frozen_lower_half"])
@pytest.mark.parametrize("kind", ["whole", "padded"])
@pytest.mark.parametrize("experts", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("architecture", EXPERTS)
def test_only_active_experts_count(architecture, experts, kind, method):
    model, batch = build_decoder(architecture, method), build_batch(kind)
    model.set_experts_implementation(experts)
    counted = ModelFlops.from_model(model).count(batch.document_lengths, batch.tokens, 0, rows=batch.rows)
    assert relative_error(counted.hardware, measure_flops(lambda: batch.step(model))) < 0.005


def test_grouped_products_as_worked_out_by_hand():
    """7 rows of 8 with the weights (8, 16) of 3 groups: 2 * 7 * 8 * 16, and the same for each gradient."""
    rows, weights = torch.randn(7, 8, requires_grad=True), torch.randn(3, 8, 16, requires_grad=True)
    ends = torch.tensor([2, 2, 7], dtype=torch.int32)
    assert measure_flops(lambda: torch._grouped_mm(rows, weights, offs=ends).square().sum().backward()) == 3 * 1792
    fallback = torch.ops.transformers.grouped_mm_fallback
    assert measure_flops(lambda: fallback(rows, weights, ends).square().sum().backward()) == 3 * 1792
    assert count_grouped((3, 4, 8), (3, 8, 16)) == 3 * 2 * 4 * 8 * 16  # two stacks: a batched product
    assert count_grouped((3, 4, 8), (8, 16)) == 2 * 4 * 8 * 16  # the groups share out the 16 columns


def test_reentrant_checkpointing_recomputes_the_whole_layer():
    model, batch = build_decoder("qwen2"), build_batch("whole")
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    counted = ModelFlops.from_model(model).count(batch.document_lengths, batch.tokens, 0, rows=batch.rows)
    assert relative_error(counted.hardware, measure_flops(lambda: batch.step(model))) < 0.005


def test_measure_flops_corrects_causal_attention():
    query = torch.randn(1, 2, 8, 4, requires_grad=True)
    run = lambda: nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True).sum().backward()  # noqa: E731
    pairs, width = 36, 8  # 8 * 9 / 2 pairs; 2 heads of 4
    assert measure_flops(run, flash_recompute=False) == 4 * width * pairs * 3
    assert measure_flops(run) == 4 * width * pairs * 3 + 2 * width * pairs


# -- generation --------------------------------------------------------------------------------------------------------


def decode(model, prompt_tokens: int, new_tokens: int) -> None:
    """Greedy, the prompt first and then token by token, against a cache."""
    ids, cache = torch.ones(1, prompt_tokens, dtype=torch.long), None
    for _ in range(new_tokens):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        ids, cache = out.logits[:, -1:].argmax(-1), out.past_key_values


@pytest.mark.parametrize(("prompt_tokens", "new_tokens"), [(20, 1), (1, 9), (20, 12)])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("architecture", ["minigpt", "qwen2", "qwen2_tied", "llama", "gpt2"])
def test_generation_with_a_cache_equals_the_executed_flops(architecture, method, prompt_tokens, new_tokens):
    model = build_decoder(architecture, method).eval()
    counted = ModelFlops.from_model(model).count_generation(prompt_tokens, new_tokens)
    with torch.no_grad():
        measured = measure_flops(lambda: decode(model, prompt_tokens, new_tokens))
    assert relative_error(counted, measured) < 0.005


def test_generate_executes_what_is_counted():
    model = build_decoder("qwen2").eval()
    ids = torch.ones(1, 7, dtype=torch.long)
    run = lambda: model.generate(ids, max_new_tokens=9, min_new_tokens=9, do_sample=False, use_cache=True)  # noqa: E731
    assert relative_error(ModelFlops.from_model(model).count_generation(7, 9), measure_flops(run)) < 0.005


def test_generation_by_hand():
    """The Llama of `test_llama_by_hand`: a prompt of 3 and 2 new tokens are 4 in the layers and 2 in the head."""
    layer_weights = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 80
    flops = ModelFlops.from_model(build_decoder("llama"))
    pairs = 1 + 2 + 3 + 4
    assert flops.count_generation(3, 2) == 2 * 4 * layer_weights * 4 + 2 * 32 * 96 * 2 + 4 * 32 * 4 * pairs
    assert flops.count_generation(3, 0) == 0
    windowed = ModelFlops.from_model(build_decoder("mistral"))  # by 12: the thirteenth query leaves one key out
    thirteenth = windowed.count_generation(13, 1) - windowed.count_generation(12, 1)
    assert thirteenth == 2 * 4 * layer_weights + 4 * 32 * 4 * 12


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_llama_by_hand():
    """hidden 32, MLP 80, 4 heads of 8, 2 of them for keys and values, 4 layers, vocabulary 96; documents of 3 and 5."""
    layer_weights = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 80
    matmul_weights = 4 * layer_weights + 32 * 96
    linear = 6 * matmul_weights * 8
    attention = 3 * 4 * 32 * 4  # forward and twice back; score and sum at 2 FLOPs; width 32; 4 layers
    flops = ModelFlops.from_model(build_decoder("llama")).count([3, 5], tokens=10, loss_tokens=6)
    assert flops.model == linear + attention * (6 + 15)
    assert flops.palm == linear + attention * (9 + 25)
    rescoring = 2 * 32 * 4 * (6 + 15)
    assert flops.hardware == 6 * matmul_weights * 10 + attention * (6 + 15) + rescoring


def test_lora_is_not_six_n():
    """Trap: 6 N a token. Frozen weights have no gradient, and the lowest layer's q, k, v need no input gradient."""
    model = build_decoder("llama", "lora")
    weights = 4 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 80) + 32 * 96
    lowest_qkv = 32 * 32 + 2 * 32 * 16
    adapters_per_layer = 4 * ((32 + 32) + 2 * (32 + 16) + (32 + 32) + 2 * (32 + 80) + (80 + 32))
    lowest_a = 4 * (3 * 32)
    expected = 4 * weights - 2 * lowest_qkv + 6 * 4 * adapters_per_layer - 2 * lowest_a
    assert ModelFlops.from_model(model).count([1], 1, 1).model == expected + 3 * 4 * 32 * 4


def test_nothing_below_the_first_trainable_layer_has_a_backward():
    model = build_decoder("llama", "frozen_lower_half")
    FULL.apply(model)
    frozen = find_matmuls(model)
    by_layer = {i: [m for m in frozen.layers if f"layers.{i}." in m.name] for i in range(4)}
    assert not any(m.input_grad or m.weight_grad or m.recomputed for i in (0, 1) for m in by_layer[i])
    assert all(m.weight_grad and m.input_grad for m in by_layer[3])
    # layer 2's norm is trainable, so its q, k, v pass a gradient down to it
    assert all(m.weight_grad and m.input_grad for m in by_layer[2])


def test_head_counts_the_tokens_it_is_computed_for():
    model = build_decoder("llama")
    every = ModelFlops.from_model(model).count([8], 10, loss_tokens=3)
    masked = ModelFlops.from_model(model, head_on_loss_tokens=True).count([8], 10, loss_tokens=3)
    head = 6 * 32 * 96
    assert every.model - masked.model == head * (8 - 3)
    assert every.hardware - masked.hardware == head * (10 - 3)


def test_recompute_counts_in_hardware_only():
    model = build_decoder("llama")
    plain = ModelFlops.from_model(model).count([16, 16], 32, 32)
    FULL.apply(model)
    again = ModelFlops.from_model(model).count([16, 16], 32, 32)
    assert (again.model, again.palm) == (plain.model, plain.palm)
    assert again.hardware > 1.2 * plain.hardware


def test_padding_is_hardware_only():
    flops = ModelFlops.from_model(build_decoder("llama"))
    assert flops.count([8], 8, 8).model == flops.count([8], 64, 8).model
    assert flops.count([8], 64, 8).hardware > flops.count([8], 8, 8).hardware


def test_quantised_base_counts_like_a_frozen_one():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    dense = build_decoder("llama", "lora")
    packed = build_decoder("llama", "lora")
    for _, module in list(packed.named_modules()):
        base = getattr(module, "base_layer", None)
        if base is not None:
            packed_linear = bitsandbytes.nn.Linear4bit(base.in_features, base.out_features, bias=False)
            module.base_layer = packed_linear.to("cpu")
            module.base_layer.weight.requires_grad_(False)
    assert ModelFlops.from_model(packed) == ModelFlops.from_model(dense)


def test_meta_model_counts_the_same():
    assert ModelFlops.from_model(build_decoder("qwen3", device="meta")) == ModelFlops.from_model(build_decoder("qwen3"))


def test_micro_batches_add_up_and_large_lengths_do_not_overflow():
    flops = ModelFlops.from_model(build_decoder("llama"))
    parts = [flops.count([n], n, n) for n in (5, 9)]
    assert sum(parts, StepFlops()) == flops.count([5, 9], 14, 14)
    lengths = cast(Any, np.array([100_000, 70_000], dtype=np.int32))
    assert flops.count(lengths, 170_000, 0) == flops.count([100_000, 70_000], 170_000, 0)
    assert isinstance(flops.count(lengths, 170_000, 0).model, int)


@pytest.mark.parametrize("window", [None, 1, 4, 9])
def test_pairs_against_brute_force(window):
    for length in range(1, 12):
        seen = [min(i + 1, window or length) for i in range(length)]
        assert causal_pairs(length, window) == sum(seen)
        assert square_pairs(length, window) == length * min(length, window or length)


def test_unknown_weights_are_named_not_guessed(caplog):
    model = build_decoder("llama")
    model.model.layers[1].mlp.mixer = nn.Conv1d(32, 32, 3)
    with caplog.at_level(logging.WARNING, logger="redline.metrics"):
        ModelFlops.from_model(model)
    assert "model.layers.1.mlp.mixer.weight" in caplog.text
