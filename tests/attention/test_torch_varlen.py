"""PyTorch's attention for documents of any length inside models of transformers gives what eager attention gives.

Its device function runs on CUDA only, and is compared there (`tests/gpu/test_attention.py`). Here a loop over documents
takes its place, so everything around it runs: boundaries, window, heads, head sizes, and what goes to SDPA instead.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tests.attention.batches import CONFIGS, build_model, make_batch, run
from tests.models.tiny import generate_greedily
from tests.reads import RefuseReads
from training.attention import torch_varlen
from training.attention.torch_varlen import find_boundaries

MODELS = pytest.mark.parametrize("name", CONFIGS)
MODULE: Any = SimpleNamespace(is_causal=True, num_key_value_groups=2, training=True)


def attend_in_turn(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, *rest: Any, **settings: Any) -> Tensor:
    """`varlen_attn` document by document, (tokens, heads, dim)."""
    assert torch.equal(ends, rest[0]) and ends.dtype == torch.int32 and rest[1] == rest[2] >= ends.diff().max()
    left, right = settings["window_size"]
    assert right == 0 and query.shape[-1] % 8 == 0 and settings["enable_gqa"] == (query.shape[1] != key.shape[1])
    outs = []
    lengths = ends.diff().tolist()
    for length, *parts in zip(lengths, *(x.split(lengths) for x in (query, key, value)), strict=True):
        distance = torch.arange(length)[:, None] - torch.arange(length)
        seen = (distance >= 0) & (distance <= left if left >= 0 else True)
        q, k, v = (part.transpose(0, 1).float() for part in parts)
        out = scaled_dot_product_attention(q, k, v, seen, scale=settings["scale"], enable_gqa=True)
        outs.append(out.transpose(0, 1))
    return torch.cat(outs).to(query.dtype)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The loop in place of the device function, for any device and dtype; its calls."""
    made: list[tuple[Any, ...]] = []

    def note(*arguments: Any, **settings: Any) -> Tensor:
        made.append(arguments)
        return attend_in_turn(*arguments, **settings)

    monkeypatch.setattr(torch_varlen, "varlen_attn", note)
    monkeypatch.setattr(torch_varlen, "suits", lambda *_: True)
    return made


@MODELS
@pytest.mark.parametrize("kind", ["whole", "boundaries", "padded right", "padded left"])
def test_losses_and_gradients_are_those_of_eager_attention(calls: list[Any], name: str, kind: str):
    batch = make_batch(kind)
    longest = {"max_length_q": 21, "max_length_k": 21} if kind == "boundaries" else {}
    loss, grads = run(build_model(name, torch_varlen.NAME), batch | longest)
    plain = {key: value for key, value in batch.items() if not key.startswith("cu_seq")}
    expected, expected_grads = run(build_model(name, "eager"), plain)
    assert loss == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-4, atol=1e-5)
    has_window = {"qwen2": 0, "qwen2 with a window": 1, "mistral with a window": 2}[name]
    assert len(calls) == (has_window if kind == "whole" else 2)  # whole rows without a window go to SDPA


@MODELS
@pytest.mark.parametrize("kind", ["whole", "padded left"])
@pytest.mark.parametrize("cache", [None, "static", False], ids=str)
def test_generated_tokens_are_those_of_sdpa(calls: list[Any], name: str, kind: str, cache: Any):
    batch = make_batch(kind)
    del batch["labels"]
    tokens = [generate_greedily(build_model(name, one), batch, cache) for one in ("sdpa", torch_varlen.NAME)]
    assert torch.equal(*tokens)


def make_inputs(dim: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, value (2 rows, heads, 20 tokens, dim)."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 20, dim, generator=generator) for heads in (4, 2, 2))
    return query, key, value


BOUNDS: dict[str, Any] = {"cu_seq_lens_q": torch.tensor([0, 7, 20, 20, 40], dtype=torch.int32), "max_length_q": 20}


@pytest.mark.parametrize("window", [None, 5])
def test_what_the_kernel_does_not_compute_goes_to_sdpa_under_a_mask(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, window: int | None
):
    settings = BOUNDS | {"scaling": 0.25, "sliding_window": window}
    expected, _ = torch_varlen.attend_documents(MODULE, *make_inputs(), None, **settings)
    assert len(calls) == 1
    out, _ = torch_varlen.attend_documents(MODULE, *make_inputs(), None, dropout=1e-9, **settings)
    torch.testing.assert_close(out, expected)
    monkeypatch.setattr(torch_varlen, "suits", lambda *_: False)
    out, _ = torch_varlen.attend_documents(MODULE, *make_inputs(), None, **settings)
    torch.testing.assert_close(out, expected)
    assert len(calls) == 1


def test_dropout_leaves_documents_apart(calls: list[Any]):
    query, key, value = make_inputs()
    torch.manual_seed(0)
    first, _ = torch_varlen.attend_documents(MODULE, query, key, value, None, dropout=0.3, **BOUNDS)
    key[:, :, 7:] += 10
    torch.manual_seed(0)
    second, _ = torch_varlen.attend_documents(MODULE, query, key, value, None, dropout=0.3, **BOUNDS)
    assert torch.equal(first[0, :7], second[0, :7]) and not torch.equal(first, second)
    assert not calls


def test_queries_that_see_later_keys_see_those_of_their_document(calls: list[Any]):
    query, key, value = make_inputs()
    out, _ = torch_varlen.attend_documents(MODULE, query, key, value, None, is_causal=False, **BOUNDS)
    query, key, value = (x[:1, :, :7] for x in (query, key, value))
    expected = scaled_dot_product_attention(query, key, value, enable_gqa=True)[0].transpose(0, 1)
    torch.testing.assert_close(out[0, :7], expected)
    assert not calls


def test_head_sizes_that_the_kernel_lacks_are_padded(calls: list[Any]):
    query, key, value = make_inputs(dim=12)
    out, _ = torch_varlen.attend_documents(MODULE, query, key, value[..., :10], None, **BOUNDS)
    assert calls[0][0].shape == (40, 4, 16) and out.shape == (2, 20, 4, 10)
    expected, _ = torch_varlen.attend_documents(MODULE, query, key, value, None, **BOUNDS)
    torch.testing.assert_close(out, expected[..., :10])


def test_under_autocast_inputs_become_bfloat16(calls: list[Any]):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = torch_varlen.attend_documents(MODULE, *make_inputs(), None, **BOUNDS)
    assert out.dtype == calls[0][0].dtype == torch.bfloat16


def test_inputs_of_a_cpu_or_in_float32_do_not_suit():
    half = torch.empty(1, 1, 1, 16, dtype=torch.bfloat16)
    assert not torch_varlen.suits(half, half) and not torch_varlen.suits(half.float(), half.float())


def test_of_a_padded_row_the_padding_is_a_document_on_each_side():
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
    bounds = find_boundaries(4, 4, mask, {})
    assert bounds is not None and bounds.longest == 4
    assert bounds.ends.tolist() == [0, 0, 2, 4, 5, 8, 8, 8, 12, 12, 12, 12, 16]
    assert find_boundaries(4, 4, mask, {}) is bounds  # all layers share it
    mask[2, 2:] = 0
    assert find_boundaries(4, 4, mask, {}) is not bounds
    longer = find_boundaries(1, 3, torch.tensor([[0, 0, 1, 1]]), {})
    assert longer is not None and longer.ends.tolist() == [0, 1, 3, 3]


def test_a_mask_with_a_gap_is_an_error():
    with pytest.raises(RuntimeError, match="padding between its tokens.*attn_implementation: sdpa"):
        find_boundaries(2, 4, torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1]]), {})


def test_packed_rows_without_boundaries_are_an_error():
    positions = torch.tensor([[0, 1, 0, 1]])
    assert find_boundaries(1, 4, None, {"position_ids": positions, **BOUNDS}) is not None
    assert find_boundaries(2, 4, None, {"position_ids": torch.arange(4)[None]}) is None
    with pytest.raises(RuntimeError, match="no cu_seq_lens_q: torch_varlen would take the documents of a row for one"):
        find_boundaries(1, 4, None, {"position_ids": positions})


@pytest.mark.parametrize("kind", ["whole", "boundaries", "padded left"])
def test_no_layer_waits_for_the_device(calls: list[Any], monkeypatch: pytest.MonkeyPatch, kind: str):
    """From the batch to the last gradient, with what transformers does around it; also under attention dropout."""
    monkeypatch.setattr(torch_varlen, "varlen_attn", lambda query, *_, **__: query * 1.0)
    model = build_model("qwen2 with a window", torch_varlen.NAME).train()
    batch = make_batch(kind)
    del batch["labels"]
    for dropout in (0.0, 0.5):
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = dropout
        with RefuseReads():
            model(**batch, use_cache=False).logits.sum().backward()


def test_the_watch_sees_what_waits():
    model = build_model("qwen2", "sdpa").train()
    batch = make_batch("padded left")
    with pytest.raises(AssertionError, match="_local_scalar_dense"), RefuseReads():
        model(**batch, use_cache=False)
