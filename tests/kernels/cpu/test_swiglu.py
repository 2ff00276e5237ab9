"""SwiGLU against the same in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.cpu import references
from tests.kernels.cpu.references import TOLERANCE, find_error
from training.kernels.cpu.functions import ops, swiglu

pytestmark = pytest.mark.usefixtures("kernels")


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(1, 150)),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from(["plain", "rows apart", "columns apart"]),
    st.booleans(),
)
def test_results_and_gradients_are_those_of_float64(
    shape: tuple[int, int, int], dtype: torch.dtype, layout: str, is_summed: bool
):
    generator = torch.Generator().manual_seed(sum(shape))
    rows, tokens, width = shape
    packed = (torch.randn(rows, tokens, 2 * width, generator=generator) * 3).to(dtype)
    if layout == "rows apart":
        packed = torch.cat((packed, packed), -1)[..., : 2 * width]
    elif layout == "columns apart":
        packed = packed.transpose(1, 2).contiguous().transpose(1, 2)
    packed.requires_grad_()
    exact = packed.detach().double().requires_grad_()
    out, expected = swiglu(packed), references.swiglu(exact)
    assert out.dtype == dtype and out.shape == expected.shape
    grad = torch.ones(()).to(dtype).expand(out.shape) if is_summed else torch.randn(out.shape).to(dtype)
    out.backward(grad)
    expected.backward(grad.double())
    assert packed.grad is not None and exact.grad is not None
    assert find_error(out, expected) < TOLERANCE[dtype]
    assert find_error(packed.grad, exact.grad) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gates_of_any_size_stay_finite(dtype: torch.dtype):
    gate = torch.tensor([-1e30, -200, -100, -88, 0, 88, 100, 200, 1e30] * 4)
    packed = torch.cat((gate, torch.ones(36))).to(dtype).view(1, -1).requires_grad_()
    out = swiglu(packed)
    torch.testing.assert_close(out[0].float(), torch.nn.functional.silu(gate.to(dtype)).float())
    out.backward(torch.ones_like(out))
    assert packed.grad is not None and packed.grad.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"up": torch.zeros(4, 7)}, "of one shape and type"),
        ({"up": torch.zeros(4, 8, dtype=torch.bfloat16)}, "of one shape and type"),
        ({"gate": torch.zeros(4, 2, 8), "up": torch.zeros(4, 2, 8)}, "of one shape and type"),
        ({"gate": torch.zeros(8, 4).t(), "up": torch.zeros(4, 8)}, "dense rows"),
        ({name: torch.zeros(4, 8, dtype=torch.float16) for name in ("gate", "up")}, "float32 or bfloat16, not Half"),
    ],
)
def test_what_does_not_fit_is_an_error(changes: dict[str, Any], message: str):
    given = {"gate": torch.zeros(4, 8), "up": torch.zeros(4, 8)} | changes
    with pytest.raises(RuntimeError, match=message):
        ops.swiglu(**given)
    if "Half" not in message:
        with pytest.raises(RuntimeError, match=message):
            ops.swiglu_backward(torch.zeros(4, 8), **given, gate_grad=torch.zeros(4, 8), up_grad=torch.zeros(4, 8))
