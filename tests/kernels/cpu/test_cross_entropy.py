"""Cross-entropy in place against the same in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.cpu import references
from tests.kernels.cpu.references import find_error
from training.kernels.cpu.functions import ops

pytestmark = pytest.mark.usefixtures("kernels")

TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 1e-2}  # of gradients: e^(logit - log sum) of a sum near 20


@settings(max_examples=100, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 400)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    terms=st.tuples(st.sampled_from([0.0, 0.1, 0.9]), st.sampled_from([0.0, 1e-4, 0.3]), st.sampled_from([1.0, 0.02])),
    gap=st.integers(0, 9),
    seed=st.integers(0, 100),
)
def test_losses_and_gradients_are_those_of_float64(
    shape: tuple[int, int], dtype: torch.dtype, terms: tuple[float, float, float], gap: int, seed: int
):
    rows, vocab_size = shape
    generator = torch.Generator().manual_seed(seed)
    wide = (torch.randn(rows, vocab_size + gap, generator=generator) * 4).to(dtype)
    before, logits = wide.clone(), wide[:, :vocab_size]
    labels = torch.randint(0, vocab_size, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < 0.2] = -100
    exact = logits.double().requires_grad_()
    expected = references.cross_entropy(exact, labels, *terms)
    expected.sum().backward()

    losses = ops.cross_entropy_(logits, labels, *terms, False)
    assert torch.equal(wide, before), "the logits are read only"
    again = ops.cross_entropy_(logits, labels, *terms, True)
    assert torch.equal(losses, again)
    assert losses.dtype == torch.float32
    assert find_error(losses, expected, floor=0.1) < (1e-6 if dtype == torch.float32 else 1e-4)
    assert exact.grad is not None
    assert find_error(logits, exact.grad, floor=0.05 * terms[2]) < TOLERANCE[dtype]
    assert torch.equal(wide[:, vocab_size:], before[:, vocab_size:]), "what lies between rows is nobody's"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_any_size_and_tokens_that_cannot_be(dtype: torch.dtype):
    logits = torch.tensor([[1e4, -1e4, 0, 5.0] * 5, [-1e4] * 19 + [float("-inf")]]).to(dtype)
    labels = torch.tensor([2, 0])
    exact = logits.double().requires_grad_()
    expected = references.cross_entropy(exact, labels, 0.0, 0.0, 1.0)  # the mean of logits is infinite
    expected.sum().backward()
    losses = ops.cross_entropy_(logits, labels, 0.0, 0.0, 1.0, True)
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-3, atol=0)
    assert exact.grad is not None and find_error(logits, exact.grad) < 1e-2


def test_threads_change_no_bit():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(64, 333, generator=generator), torch.randint(0, 333, (64,), generator=generator)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            grads = logits.clone()
            results.append((ops.cross_entropy_(grads, labels, 0.1, 1e-4, 1.0, True), grads))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": torch.zeros(2, 3, 5)}, r"logits: \(rows, vocab_size\)"),
        ({"logits": torch.zeros(5, 3).t()}, "dense rows"),
        ({"logits": torch.zeros(3, 5, dtype=torch.float16)}, "expected float32 or bfloat16, not Half"),
        ({"labels": torch.tensor([0, 1])}, "one int64 per row"),
        ({"labels": torch.tensor([0, 1, 2], dtype=torch.int32)}, "one int64 per row"),
        ({"labels": torch.tensor([0, 1, 5])}, "label 5 of row 2 is outside the vocabulary of 5"),
        ({"labels": torch.tensor([-1, 1, 4])}, "label -1 of row 0 is outside the vocabulary of 5"),
    ],
)
def test_what_does_not_fit_is_an_error(changes: dict[str, Any], message: str):
    given = {"logits": torch.zeros(3, 5), "labels": torch.tensor([0, 1, 2])} | changes
    with pytest.raises(RuntimeError, match=message):
        ops.cross_entropy_(*given.values(), 0.0, 0.0, 1.0, True)
