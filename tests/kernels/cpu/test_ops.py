"""The declarations: what fake tensors become, and that operators change what they say they change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from tests.kernels.cpu.references import documents_of
from training.kernels.cpu import ops as declared
from training.kernels.cpu.functions import AttentionTerms, add_rms_norm, attend, attend_packed, ops, swiglu

pytestmark = pytest.mark.usefixtures("kernels")

FLOAT, BFLOAT = torch.float32, torch.bfloat16
NAMES = [schema.partition("(")[0] for schema in declared.SCHEMAS]  # attention is the first


def list_calls(dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    """Arguments of each operator."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 8, 4, 16, dtype=dtype), torch.randn(2, 8, 2, 16, dtype=dtype)
    angles = torch.randn(1, 8, 16), torch.randn(1, 8, 16)
    places = torch.tensor([0, 8]), torch.tensor([8, 6])
    out, log_sums = ops.attention(query, key, key, *angles, *places, 0.25, 0)
    results = torch.empty_like(query), torch.empty_like(key), torch.empty_like(key)
    x, weight, scales = torch.randn(6, 10, dtype=dtype), torch.ones(10), torch.ones(6)
    return {
        "attention": (query, key, key, *angles, *places, 0.25, 0),
        "attention_backward": (
            query, query, key, key, *angles, out, log_sums.nan_to_num(), *places, 0.25, 0, *results,
        ),
        "add_rms_norm": (x, x, weight, 1e-6, BFLOAT),
        "add_rms_norm_backward": (x, x, x, weight, scales, BFLOAT),
        "swiglu": (x, x),
        "swiglu_backward": (x, x, x, torch.empty_like(x), torch.empty_like(x)),
        "cross_entropy_": (x.clone(), torch.tensor([0, 1, 2, -100, 9, 5]), 0.1, 1e-4, 1.0, True),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_fake_tensors_have_the_shapes_of_real_ones(name: str, dtype: torch.dtype):
    arguments = list_calls(dtype)[name]
    operator = getattr(ops, name).default
    with FakeTensorMode() as mode:
        fakes = operator(*(mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in arguments))
    reals = operator(*arguments)
    if reals is None:
        assert fakes is None
        return
    fakes, reals = ((x,) if isinstance(x, torch.Tensor) else x for x in (fakes, reals))
    for fake, real in zip(fakes, reals, strict=True):
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


@pytest.mark.parametrize("name", NAMES[1:])
def test_operators_keep_to_their_schemas(name: str):
    """`attention` leaves the log-sums of tokens without a document as they are: no two calls agree on them."""
    torch.library.opcheck(
        getattr(ops, name).default, list_calls(FLOAT)[name], test_utils=("test_schema", "test_faketensor")
    )


def test_without_delta_or_of_its_type_some_results_are_empty():
    x, weight = torch.randn(6, 10), torch.ones(10)
    for arguments in ((x, None, weight, 1e-6, FLOAT), (x, x, weight, 1e-6, FLOAT)):
        torch.library.opcheck(ops.add_rms_norm.default, arguments, test_utils=("test_schema", "test_faketensor"))
    for dtype in (None, FLOAT, BFLOAT):
        arguments = (None, x, x, weight, torch.ones(6), dtype)
        torch.library.opcheck(
            ops.add_rms_norm_backward.default, arguments, test_utils=("test_schema", "test_faketensor")
        )


def run_all(packed: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Each function once: packed (1, 24, 4, 16)."""
    terms = AttentionTerms(documents_of([(0, 20), (20, 4)]), 0.25)
    angles = torch.ones(1, 24, 16), torch.zeros(1, 24, 16)
    out = attend_packed(packed, 1, terms, angles)
    out = attend(out, packed[:, :, 2:3], packed[:, :, 3:], terms, angles)
    total, normed = add_rms_norm(out.flatten(2), out.flatten(2) * 2, weight, 1e-6, FLOAT)
    return swiglu(torch.cat((total, normed), -1))


def test_recomputing_them_in_the_backward_pass_changes_nothing():
    torch.manual_seed(0)
    inputs = torch.randn(1, 24, 4, 16, requires_grad=True), torch.randn(32, requires_grad=True)
    plain = run_all(*inputs)
    again: Any = checkpoint(run_all, *inputs, use_reentrant=False)
    assert torch.equal(plain, again)
    for one, other in zip(
        torch.autograd.grad(plain.square().sum(), inputs),
        torch.autograd.grad(again.square().sum(), inputs),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_fake_tensors_go_forward_and_back():
    with FakeTensorMode():
        inputs = torch.randn(1, 24, 4, 16, requires_grad=True), torch.randn(32, requires_grad=True)
        run_all(*inputs).sum().backward()
        assert [x.grad is not None and x.grad.shape == x.shape for x in inputs] == [True, True]
