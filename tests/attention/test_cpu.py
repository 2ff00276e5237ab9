"""Our CPU attention inside models of transformers gives what eager attention gives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.attention.batches import CONFIGS, build_model, make_batch, run
from tests.models.tiny import generate_greedily
from training.attention import cpu
from training.attention.unmasked import spread
from training.kernels.cpu import build
from training.kernels.cpu.functions import Documents

MODELS = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    if obstacle := build.load():
        pytest.skip(obstacle)


@MODELS
@pytest.mark.parametrize("kind", ["whole", "boundaries", "positions", "padded right", "padded left"])
def test_losses_and_gradients_are_those_of_eager_attention(name: str, kind: str):
    batch = make_batch(kind)
    loss, grads = run(build_model(name, cpu.NAME), batch)
    plain = {key: value for key, value in batch.items() if not key.startswith("cu_seq")}
    expected, expected_grads = run(build_model(name, "eager"), plain)
    assert loss == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-4, atol=1e-5)


@MODELS
@pytest.mark.parametrize("kind", ["whole", "padded left"])
@pytest.mark.parametrize("cache", [None, "static", False], ids=str)
def test_generated_tokens_are_those_of_sdpa(name: str, kind: str, cache: Any):
    batch = make_batch(kind)
    del batch["labels"]
    tokens = [generate_greedily(build_model(name, one), batch, cache) for one in ("sdpa", cpu.NAME)]
    assert torch.equal(*tokens)


@MODELS
def test_a_prompt_in_two_parts_gives_the_same_logits(name: str):
    """The second part has keys before it: as many queries as keys only in the first."""
    model = build_model(name, cpu.NAME).eval()
    ids = make_batch("whole")["input_ids"]
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        first = model(ids[:, :15], use_cache=True)
        second = model(ids[:, 15:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat((first.logits, second.logits), 1), whole, rtol=1e-4, atol=1e-5)


MODULE: Any = SimpleNamespace(is_causal=True, num_key_value_groups=2, training=True)


def make_inputs(rows: int = 2, tokens: int = 20, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, value (rows, heads, tokens, 16)."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(rows, heads, tokens, 16, generator=generator).to(dtype) for heads in (4, 2, 2))
    return query, key, value


def attend_by_sdpa(inputs: tuple[Tensor, Tensor, Tensor], mask: Tensor) -> Tensor:
    query, key, value = inputs
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
    return out.transpose(1, 2)


@pytest.mark.parametrize("window", [None, 5])
def test_dropout_leaves_documents_apart(window: int | None):
    """The mean is that without dropout; what comes after a document changes nothing in it."""
    inputs = make_inputs()
    positions = torch.cat([torch.arange(n) for n in (7, 13, 20)]).view(2, 20)
    settings = {"position_ids": positions, "sliding_window": window, "scaling": 0.25}
    expected, _ = cpu.attend_documents(MODULE, *inputs, None, **settings)
    torch.manual_seed(0)
    outs = [cpu.attend_documents(MODULE, *inputs, None, dropout=0.3, **settings)[0] for _ in range(300)]
    assert not torch.equal(outs[0], outs[1])
    torch.testing.assert_close(torch.stack(outs).mean(0), expected, rtol=0, atol=0.4)
    later = tuple(x.clone() for x in inputs)
    for x in later[1:]:
        x[:, :, 7:] += 10
    torch.manual_seed(0)
    out, _ = cpu.attend_documents(MODULE, later[0], later[1], later[2], None, dropout=0.3, **settings)
    assert torch.equal(out[0, :7], outs[0][0, :7])


def test_a_query_that_sees_later_keys_is_computed_by_sdpa():
    inputs = make_inputs()
    out, _ = cpu.attend_documents(MODULE, *inputs, None, is_causal=False)
    torch.testing.assert_close(out, attend_by_sdpa(inputs, torch.ones(20, 20, dtype=torch.bool)))
    mask = torch.ones(2, 20)
    mask[0, 12:] = 0
    out, _ = cpu.attend_documents(MODULE, *inputs, mask, is_causal=False)
    seen = mask[:, None, None, :].bool() | torch.eye(20, dtype=torch.bool)
    torch.testing.assert_close(out[0, :12], attend_by_sdpa(inputs, seen)[0, :12])
    torch.testing.assert_close(out[1], attend_by_sdpa(inputs, seen)[1])


def test_a_whole_mask_goes_to_sdpa_as_it_is():
    inputs = make_inputs()
    mask = torch.rand(2, 1, 20, 20, generator=torch.Generator().manual_seed(1)) < 0.5
    mask |= torch.eye(20, dtype=torch.bool)
    out, _ = cpu.attend_documents(MODULE, *inputs, mask)
    torch.testing.assert_close(out, attend_by_sdpa(inputs, mask))


def test_under_autocast_inputs_become_bfloat16():
    query, key, value = make_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = cpu.attend_documents(MODULE, query, key, value.bfloat16(), None)
    assert out.dtype == torch.bfloat16
    expected, _ = cpu.attend_documents(MODULE, query, key, value, None)
    torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.02)


def test_the_scale_is_that_of_the_head_size_unless_given():
    terms = [cpu.find_terms(1, 4, 16, None, settings) for settings in ({}, {"scaling": 0.5})]
    assert [one.scale for one in terms] == [0.25, 0.5]
    assert terms[0].window == 0


def test_which_keys_are_seen():
    documents = Documents(torch.tensor([1, 4]), torch.tensor([2, 4]))
    seen = spread(documents, 2, 4, window=2)[:, 0].int().tolist()
    assert seen[0] == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert seen[1] == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    both = spread(documents, 2, 4, is_causal=False)[:, 0].int().tolist()
    assert both[0] == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
