"""Every CPU kernel against plain float64 formulas, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from training.kernels.cpu import build
from training.kernels.cpu.functions import (
    AttentionTerms,
    Documents,
    add_rms_norm,
    attend,
    attend_packed,
    ops,
    swiglu,
)

pytestmark = pytest.mark.skipif(build.find_obstacle() is not None, reason=str(build.find_obstacle()))

BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 1e-2}  # of the relative error, in the norm


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    assert build.load() is None


def find_error(ours: Tensor, exact: Tensor) -> float:
    exact = exact.detach()
    return float((ours.detach().double() - exact).norm() / exact.norm().clamp(min=1e-6 * exact.numel() ** 0.5))


def lay_out(lengths: list[int], rows: int, tokens: int) -> Documents:
    """Documents one after the other, as many as fit, each within its row; what is left over is padding."""
    starts, kept, at = [], [], 0
    for wanted in lengths:
        length = min(wanted, tokens)
        if at % tokens + length > tokens:
            at += tokens - at % tokens
        if at + length > rows * tokens:
            break
        starts.append(at)
        kept.append(length)
        at += length
    return Documents(torch.tensor(starts, dtype=torch.long), torch.tensor(kept, dtype=torch.long))


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = (angle[:, :, None].double() for angle in angles)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def attend_exactly(query: Tensor, key: Tensor, value: Tensor, terms: AttentionTerms) -> Tensor:
    rows, tokens, heads, dim = query.shape
    groups = heads // key.shape[2]
    flat = query.reshape(rows * tokens, heads, dim)
    keys, values = (x.reshape(rows * tokens, -1, x.shape[-1]).repeat_interleave(groups, 1) for x in (key, value))
    out = torch.zeros(rows * tokens, heads, value.shape[-1], dtype=query.dtype)
    pieces, places = [], []
    for start, length in zip(terms.documents.starts.tolist(), terms.documents.lengths.tolist(), strict=True):
        part = slice(start, start + length)
        scores = torch.einsum("qhd,khd->hqk", flat[part], keys[part]) * terms.scale
        distance = torch.arange(length)[:, None] - torch.arange(length)[None]
        hidden = (distance < 0) | (distance >= (terms.window or length))
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        pieces.append(torch.einsum("hqk,khd->qhd", weights, values[part]))
        places.append(torch.arange(start, start + length))
    if pieces:
        out = out.index_copy(0, torch.cat(places), torch.cat(pieces))
    return out.view(rows, tokens, heads, -1)


def make_angles(rows: int, tokens: int, dim: int) -> tuple[Tensor, Tensor]:
    angles = torch.rand(rows, tokens, dim // 2) * 6
    both = torch.cat((angles, angles), -1)
    return both.cos(), both.sin()


def check_attention(
    shape: tuple[int, int, int, int, int], lengths: list[int], window: int, dtype: torch.dtype, *, rotated: bool
) -> None:
    rows, tokens, kv_heads, group, dim = shape
    documents = lay_out(lengths, rows, tokens)
    terms = AttentionTerms(documents, dim**-0.5, window)
    made = [torch.randn(rows, tokens, heads, dim).to(dtype) for heads in (kv_heads * group, kv_heads, kv_heads)]
    angles = make_angles(rows, tokens, dim) if rotated else None
    ours, exact = ([x.to(kind).clone().requires_grad_() for x in made] for kind in (dtype, torch.float64))
    out = attend(ours[0], ours[1], ours[2], terms, angles)
    query, key = (rotate(x, angles) if angles else x for x in exact[:2])
    expected = attend_exactly(query, key, exact[2], terms)
    assert out.dtype == dtype and find_error(out, expected) < BOUNDS[dtype]
    grad = torch.randn(out.shape).to(dtype)
    out.backward(grad)
    expected.backward(grad.double())
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.grad is not None and theirs.grad is not None
        # A query that sees itself alone has gradients of 0, beside which rounding is everything.
        norm = max(float(theirs.grad.norm()), float(grad.double().norm()))
        assert float((mine.grad.double() - theirs.grad).norm()) < 2 * BOUNDS[dtype] * norm


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 3),
    tokens=st.integers(1, 200),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 4),
    dim=st.sampled_from([16, 32, 48, 64, 80, 24, 8]),
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=40),
    window=st.sampled_from([0, 0, 1, 7, 64, 100]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    rotated=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_attention(rows: int, tokens: int, kv_heads: int, group: int, dim: int, seed: int, **rest: Any) -> None:
    torch.manual_seed(seed)
    rotated = rest["rotated"] and dim % 16 == 0
    shape = (rows, tokens, kv_heads, group, dim)
    check_attention(shape, rest["lengths"], rest["window"], rest["dtype"], rotated=rotated)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shape", "lengths", "window"),
    [
        ((1, 1300, 1, 2, 128), [1300], 0),  # several chunks of keys
        ((1, 1300, 1, 2, 32), [1201], 600),  # a window that begins in one chunk and ends in another
        ((1, 600, 1, 1, 256), [513, 64, 23], 0),
        ((2, 300, 2, 3, 16), [3] * 200, 0),  # hundreds
        ((4, 64, 4, 1, 64), [64] * 4, 0),  # enough tasks that none is split
    ],
)
def test_attention_at_its_edges(
    shape: tuple[int, int, int, int, int], lengths: list[int], window: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    check_attention(shape, lengths, window, dtype, rotated=True)


def make_packed(dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, AttentionTerms, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    packed = torch.randn(2, 130, 8, 32).to(dtype)  # four heads, two of keys, two of values
    return packed, AttentionTerms(lay_out([70, 50, 130], 2, 130), 32**-0.5), make_angles(1, 130, 32)


def test_packed_inputs_give_what_three_give() -> None:
    packed, terms, angles = make_packed()
    one, three = packed.clone().requires_grad_(), packed.clone().requires_grad_()
    out = attend_packed(one, 2, terms, angles)
    query, key, value = three[:, :, :4], three[:, :, 4:6], three[:, :, 6:]
    expected = attend(query, key, value, terms, angles)
    assert torch.equal(out, expected)
    grad = torch.randn_like(out)
    out.backward(grad)
    expected.backward(grad)
    assert one.grad is not None and three.grad is not None
    assert torch.equal(one.grad, three.grad)
    assert not out[0, 120:].any() and not one.grad[0, 120:].any()  # of no document


def test_twice_the_same_and_with_checkpointing_too() -> None:
    packed, terms, angles = make_packed()
    grads = []
    for run in (attend_packed, attend_packed, lambda *args: checkpoint(attend_packed, *args, use_reentrant=False)):
        x = packed.clone().requires_grad_()
        out: Any = run(x, 2, terms, angles)
        out.square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])


def test_any_number_of_threads_gives_the_same_output() -> None:
    packed, terms, angles = make_packed()
    before = torch.get_num_threads()
    outs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        outs.append(attend_packed(packed, 2, terms, angles))
    torch.set_num_threads(before)
    assert torch.equal(outs[0], outs[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": torch.tensor([200])}, "leaves its row"),
        ({"starts": torch.tensor([0, 1])}, "one of each per document"),
        ({"scale": 0.0}, "scale must be positive"),
        ({"key": torch.randn(1, 100, 3, 16)}, "differ in shape"),
        ({"query": torch.randn(1, 100, 4, 24)}, "differ in shape"),
        ({"query": torch.randn(1, 100, 4, 16).double()}, "differ in type"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    given = {
        "query": torch.randn(1, 100, 4, 16),
        "key": torch.randn(1, 100, 2, 16),
        "value": torch.randn(1, 100, 2, 16),
        "cos": None,
        "sin": None,
        "starts": torch.tensor([0]),
        "lengths": torch.tensor([100]),
        "scale": 1.0,
        "window": 0,
    }
    ops.attention(*given.values())
    with pytest.raises(RuntimeError, match=message):
        ops.attention(*(given | changes).values())


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 150),
    has_delta=st.booleans(),
    uses_total=st.booleans(),
    dtypes=st.tuples(*[st.sampled_from([torch.float32, torch.bfloat16])] * 3),
    seed=st.integers(0, 1000),
)
def test_add_rms_norm(
    rows: int, columns: int, has_delta: bool, uses_total: bool, dtypes: tuple[torch.dtype, ...], seed: int
) -> None:
    torch.manual_seed(seed)
    stream, delta_dtype, out_dtype = dtypes
    x = torch.randn(rows, columns).to(stream)
    delta = torch.randn(rows, columns).to(delta_dtype) if has_delta else None
    weight = torch.randn(columns)
    inputs = [one.clone().requires_grad_() for one in (x, delta, weight) if one is not None]
    exact = [one.double().requires_grad_() for one in (x, delta, weight) if one is not None]
    total, normed = add_rms_norm(inputs[0], inputs[1] if has_delta else None, inputs[-1], 1e-5, out_dtype)
    summed = exact[0] + exact[1] if has_delta else exact[0]
    expected = summed * (summed.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * exact[-1]
    bound = max(BOUNDS[one] for one in dtypes)
    assert total.dtype == stream and normed.dtype == out_dtype
    assert find_error(total, summed) < bound and find_error(normed, expected) < bound
    grads = [torch.randn(rows, columns).to(one) for one in (stream, out_dtype)]
    parts = [normed, total] if uses_total else [normed]
    torch.autograd.backward(parts, [grads[1], grads[0]][: len(parts)])
    torch.autograd.backward([expected, summed][: len(parts)], [g.double() for g in (grads[1], grads[0])][: len(parts)])
    for mine, theirs in zip(inputs, exact, strict=True):
        assert mine.grad is not None and theirs.grad is not None and mine.grad.dtype == mine.dtype
        scale = max(float(theirs.grad.norm()), float(grads[1].double().norm()) * 1e-2)
        # Of few columns little is left of the gradient: of one, nothing but eps.
        before = float((summed.detach().square().mean(-1) + 1e-5).rsqrt().norm())
        assert float((mine.grad.double() - theirs.grad).norm()) < 3 * bound * scale + 4e-6 * max(1.0, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (7, 33), (40, 112)])
def test_swiglu(rows: int, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    packed = (4 * torch.randn(2, rows, 2 * width)).to(dtype)
    ours, exact = packed.clone().requires_grad_(), packed.double().requires_grad_()
    out = swiglu(ours)
    gate, up = exact.chunk(2, -1)
    expected = functional.silu(gate) * up
    assert find_error(out, expected) < BOUNDS[dtype]
    grad = torch.randn(out.shape).to(dtype)
    out.backward(grad)
    expected.backward(grad.double())
    assert ours.grad is not None and exact.grad is not None
    assert find_error(ours.grad, exact.grad) < BOUNDS[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-3), (0.2, 1e-2)])
@pytest.mark.parametrize("words", [1, 17, 1000])
def test_cross_entropy(words: int, smoothing: float, z_loss: float, dtype: torch.dtype) -> None:
    torch.manual_seed(words)
    logits = (3 * torch.randn(9, words)).to(dtype)
    labels = torch.randint(0, words, (9,))
    labels[::4] = -100
    exact = logits.double().requires_grad_()
    plain = functional.cross_entropy(exact, labels, label_smoothing=smoothing, reduction="none")
    expected = (plain + z_loss * exact.logsumexp(-1).square() * (labels != -100)) * 0.5
    untouched = logits.clone()
    losses = ops.cross_entropy_(untouched, labels, smoothing, z_loss, 0.5, False)
    assert torch.equal(untouched, logits)
    assert torch.equal(losses, ops.cross_entropy_(logits, labels, smoothing, z_loss, 0.5, True))
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    expected.sum().backward()
    assert exact.grad is not None
    assert float((logits.double() - exact.grad).norm()) < BOUNDS[dtype] * max(float(exact.grad.norm()), 0.1)


def test_a_label_that_is_no_word_is_refused() -> None:
    with pytest.raises(RuntimeError, match="label 5 of row 1 is no word of 5"):
        ops.cross_entropy_(torch.randn(2, 5), torch.tensor([0, 5]), 0.0, 0.0, 1.0, True)


def test_fake_tensors_have_the_shapes_and_types_of_real_ones() -> None:
    packed, terms, angles = make_packed()

    def run(packed: Tensor, angles: tuple[Tensor, Tensor], weight: Tensor) -> list[Tensor]:
        x = packed.clone().requires_grad_()
        out = attend_packed(x, 2, terms, angles)
        hidden = out.reshape(2, 130, 128).float()
        total, normed = add_rms_norm(hidden, out.reshape(2, 130, 128), weight, 1e-6, torch.bfloat16)
        last = swiglu(normed)
        (last.float().sum() + total.sum()).backward()
        assert x.grad is not None
        return [out, total, normed, last, x.grad]

    weight = torch.ones(128, requires_grad=True)
    real = run(packed, angles, weight)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        cos, sin = map(mode.from_tensor, angles)
        fake = run(mode.from_tensor(packed), (cos, sin), mode.from_tensor(weight))
    assert [(one.shape, one.dtype) for one in fake] == [(one.shape, one.dtype) for one in real]
