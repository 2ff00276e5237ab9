"""Against `functional.cross_entropy` on all logits, loss and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from training.loss import linear_cross_entropy as module
from training.loss.linear_cross_entropy import find_chunk_rows, linear_cross_entropy
from training.loss.terms import LossTerms
from training.memory.trace import _LiveBytes

VOCAB, HIDDEN = 97, 16


def make(
    rows: int, dtype: torch.dtype = torch.float32, bias: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    torch.manual_seed(rows)
    hidden = torch.randn(rows, HIDDEN, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCAB, HIDDEN, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, VOCAB, (rows,))
    labels[:: max(2, rows // 5)] = -100
    return hidden, weight, labels, torch.randn(VOCAB, dtype=dtype, requires_grad=True) if bias else None


def reference(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, terms: LossTerms) -> Tensor:
    logits = functional.linear(hidden, weight, bias).float()
    loss = functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=terms.label_smoothing)
    squares = torch.logsumexp(logits, 1).square() * (labels != -100)
    return (loss + terms.z_loss * squares.sum()) * terms.scale


TERMS = [LossTerms(), LossTerms(scale=1 / 7), LossTerms(0.1), LossTerms(0.0, 1e-2), LossTerms(0.2, 1e-2, 0.5)]


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("rows", [1, 5, 64, 257])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_loss_and_gradients_in_float32(monkeypatch, terms, rows, chunked, bias):
    if chunked:  # a chunk of some rows, a block of one, words in blocks
        monkeypatch.setattr(module, "CHUNK_BYTES", VOCAB * 4 * 10)
        monkeypatch.setattr(module, "BLOCK_BYTES", 1)
        monkeypatch.setattr(module, "SHARE_OF_GRADIENT", 0.0)
    hidden, weight, labels, head_bias = make(rows, bias=bias)
    inputs = [tensor for tensor in (hidden, weight, head_bias) if tensor is not None]
    expected = reference(hidden, weight, labels, head_bias, terms)
    wanted = torch.autograd.grad(2.5 * expected, inputs)
    loss = linear_cross_entropy(hidden, weight, labels, head_bias, terms)
    found = torch.autograd.grad(2.5 * loss, inputs)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine - theirs).norm() <= 1e-6 * theirs.norm() + 1e-6


def half(kind: torch.dtype, rows: int = 300) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(0)
    hidden, weight = torch.randn(rows, 64), torch.randn(1000, 64) / 8
    labels = torch.randint(0, 1000, (rows,))
    labels[::7] = -100
    return [x.to(kind).requires_grad_() for x in (hidden, weight)], labels


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_low_precision_is_as_near_to_float64_as_plain_logits_are(monkeypatch, kind, chunked):
    if chunked:
        monkeypatch.setattr(module, "CHUNK_BYTES", 100 * 1000 * 2)
        monkeypatch.setattr(module, "SHARE_OF_GRADIENT", 0.0)
    inputs, labels = half(kind)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    scale = 1 / int((labels != -100).sum())
    wanted = torch.autograd.grad(reference(exact[0], exact[1], labels, None, LossTerms(scale=scale)), exact)
    loss = linear_cross_entropy(inputs[0], inputs[1], labels, None, LossTerms(scale=scale))
    found = torch.autograd.grad(loss, inputs)
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine.double() - theirs).norm() <= 4e-3 * theirs.norm()


@pytest.mark.parametrize("hidden_size", [512, 896, 3584])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_its_peak_is_the_gradient_of_the_head_and_little_more(hidden_size, kind):
    """4,096 tokens and Qwen's vocabulary, on fake tensors, from which storages are counted. All but the gradient of the
    hidden states, which is the same without chunks."""
    rows, vocab_size = 4096, 151_936
    with FakeTensorMode(), _LiveBytes() as live:
        hidden, weight = (torch.zeros(size, hidden_size, dtype=kind, requires_grad=True) for size in (rows, vocab_size))
        before = live.now
        loss = linear_cross_entropy(hidden, weight, torch.zeros(rows, dtype=torch.long))
        loss.backward()
    assert max(live.timeline) - before - hidden.nbytes <= 1.15 * weight.nbytes


def test_chunks_are_of_equal_size():
    assert find_chunk_rows(2048, 2**20, 2**15) == 1024  # 64 MiB of logits, in two chunks
    assert find_chunk_rows(2049, 2**20, 2**15) == 683
    assert find_chunk_rows(8, 2**20, 2**15) == 8
    assert find_chunk_rows(8, 2**20, 2**40) == 1
    assert find_chunk_rows(0, 2**20, 2**15) == 1


def test_a_batch_without_any_loss_has_gradients_of_zero():
    hidden, weight, _, _ = make(5)
    loss = linear_cross_entropy(hidden, weight, torch.full((5,), -100))
    assert loss.item() == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, [hidden, weight]))


def test_frozen_inputs_get_no_gradient():
    hidden, weight, labels, _ = make(64)
    weight.requires_grad_(False)
    linear_cross_entropy(hidden, weight, labels).backward()
    assert hidden.grad is not None and weight.grad is None
    with torch.no_grad():
        expected = reference(hidden, weight, labels, None, LossTerms())
        assert linear_cross_entropy(hidden, weight, labels).item() == pytest.approx(expected.item(), rel=1e-6)
