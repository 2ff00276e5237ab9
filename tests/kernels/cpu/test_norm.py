"""RMSNorm of a sum against the same in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.cpu import references
from tests.kernels.cpu.references import TOLERANCE, find_error
from training.kernels.cpu.functions import add_rms_norm, ops

pytestmark = pytest.mark.usefixtures("kernels")

FLOAT, BFLOAT = torch.float32, torch.bfloat16
DTYPES = st.sampled_from([FLOAT, BFLOAT])


@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 200)),
    dtypes=st.tuples(DTYPES, DTYPES, DTYPES, DTYPES),
    has_delta=st.booleans(),
    wanted=st.sampled_from(["both", "total", "normed"]),
)
def test_results_and_gradients_are_those_of_float64(
    shape: tuple[int, int, int], dtypes: tuple[torch.dtype, ...], has_delta: bool, wanted: str
):
    generator = torch.Generator().manual_seed(sum(shape))
    of_x, of_delta, of_weight, of_out = dtypes
    x = torch.randn(shape, generator=generator).to(of_x).requires_grad_()
    delta = torch.randn(shape, generator=generator).to(of_delta).requires_grad_() if has_delta else None
    weight = (1 + torch.randn(shape[-1:], generator=generator)).to(of_weight).requires_grad_()
    leaves = [leaf for leaf in (x, delta, weight) if leaf is not None]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]

    results = add_rms_norm(x, delta, weight, 1e-6, of_out)
    expected = references.add_rms_norm(exact[0], exact[1] if has_delta else None, exact[-1], 1e-6)
    tolerance = max(TOLERANCE[dtype] for dtype in dtypes)
    assert (results[0].dtype, results[1].dtype) == (of_x, of_out)
    for one, other in zip(results, expected, strict=True):
        assert find_error(one, other) < tolerance

    used = {"both": (0, 1), "total": (0,), "normed": (1,)}[wanted]
    grads = [torch.randn(shape, generator=generator).to(BFLOAT) for _ in range(2)]
    # Of one column nothing but eps is left of the gradient, a difference of numbers near 1 / rms.
    floor = 0.2 * max(1.0, float(expected[0].detach().square().mean(-1).add(1e-6).rsqrt().max()))
    found = differentiate(results, used, grads, leaves)
    for one, other, leaf in zip(found, differentiate(expected, used, grads, exact), leaves, strict=True):
        if one is None:  # the weight where only the sum is used
            assert other is None
            continue
        assert one.dtype == leaf.dtype
        assert find_error(one, other, floor=floor) < tolerance


def differentiate(results: Any, used: tuple[int, ...], grads: list[Tensor], leaves: list[Tensor]) -> Any:
    outputs = [results[i] for i in used]
    wanted = [grads[i].to(results[i].dtype) for i in used]
    return torch.autograd.grad(outputs, leaves, wanted, allow_unused=True)


@pytest.mark.parametrize("has_delta", [False, True])
def test_inputs_and_gradients_of_any_layout(has_delta: bool):
    """A slice of the hidden size, a transposed delta, and the gradient of a sum, which is one number expanded."""
    torch.manual_seed(0)
    x = torch.randn(1, 6, 40)[..., 4:37].detach().requires_grad_()
    delta = torch.randn(1, 33, 6).transpose(1, 2).requires_grad_() if has_delta else None
    weight = torch.randn(33, requires_grad=True)
    leaves = [leaf for leaf in (x, delta, weight) if leaf is not None]
    total, normed = add_rms_norm(x, delta, weight, 1e-5, FLOAT)
    found = torch.autograd.grad(total.sum() + normed.sum(), leaves)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = references.add_rms_norm(exact[0], exact[1] if has_delta else None, exact[-1], 1e-5)
    for one, other in zip(found, torch.autograd.grad(expected[0].sum() + expected[1].sum(), exact), strict=True):
        assert find_error(one, other) < 1e-5


def test_a_frozen_weight_gets_no_gradient():
    x = torch.randn(4, 16, requires_grad=True)
    weight = torch.ones(16)
    add_rms_norm(x, None, weight, 1e-6, FLOAT)[1].square().sum().backward()
    assert weight.grad is None and x.grad is not None


def test_no_rows():
    x, weight = torch.zeros(2, 0, 16, requires_grad=True), torch.ones(16, requires_grad=True)
    total, normed = add_rms_norm(x, x * 2, weight, 1e-6, FLOAT)
    (total.sum() + normed.sum()).backward()
    assert total.shape == normed.shape == (2, 0, 16)
    assert weight.grad is not None and not weight.grad.any()


def test_threads_change_no_bit_of_the_results():
    torch.manual_seed(0)
    x, delta, weight = torch.randn(500, 65), torch.randn(500, 65), torch.randn(65)
    first = ops.add_rms_norm(x, delta, weight, 1e-6, BFLOAT)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        others = ops.add_rms_norm(x, delta, weight, 1e-6, BFLOAT)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(first, others, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(4, 3, 8)}, "expected contiguous"),
        ({"x": torch.zeros(8, 4).t()}, "expected contiguous"),
        ({"delta": torch.zeros(4, 7)}, "expected contiguous"),
        ({"delta": torch.zeros(4, 8, dtype=torch.float64)}, "expected float32 or bfloat16, not Double"),
        ({"weight": torch.zeros(7)}, "one number per column"),
        ({"dtype": torch.float16}, "expected float32 or bfloat16, not Half"),
    ],
)
def test_what_does_not_fit_is_an_error(changes: dict[str, Any], message: str):
    given = {"x": torch.zeros(4, 8), "delta": None, "weight": torch.ones(8), "eps": 1e-6, "dtype": FLOAT} | changes
    with pytest.raises(RuntimeError, match=message):
        ops.add_rms_norm(*given.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grad": torch.zeros(4, 7)}, "expected contiguous"),
        ({"total_grad": torch.zeros(3, 8)}, "expected contiguous"),
        ({"total_grad": torch.zeros(4, 8, dtype=BFLOAT)}, "gradient of the sum"),
        ({"weight": torch.zeros(7)}, "one number per column"),
        ({"scales": torch.zeros(3)}, "one float32 per row"),
        ({"scales": torch.zeros(4, dtype=torch.float64)}, "one float32 per row"),
    ],
)
def test_gradients_of_what_does_not_fit_are_an_error(changes: dict[str, Any], message: str):
    x = torch.zeros(4, 8)
    given = {"total_grad": None, "grad": x, "total": x, "weight": torch.ones(8), "scales": torch.ones(4)} | changes
    with pytest.raises(RuntimeError, match=message):
        ops.add_rms_norm_backward(*given.values(), None)
