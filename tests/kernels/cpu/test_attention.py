"""Attention over documents against the same in float64, document by document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.cpu import references
from tests.kernels.cpu.references import TOLERANCE, documents_of, find_error
from training.kernels.cpu.functions import AttentionTerms, Documents, attend, attend_packed, ops

pytestmark = pytest.mark.usefixtures("kernels")

Place = list[tuple[int, int]]


def lay_out(kind: str, rows: int, tokens: int, rng: np.random.Generator) -> Documents:
    """Documents of a batch: (start, length) row by row."""
    places: Place = []
    for row in range(rows):
        at, end = 0, tokens
        if kind == "padded left":
            at = int(rng.integers(0, tokens))
        elif kind == "padded right":
            end = int(rng.integers(0, tokens + 1))
        while at < end:
            length = {"one": tokens, "ones": 1, "odd": int(rng.integers(1, 40)), "gaps": int(rng.integers(1, 90))}.get(
                kind, int(rng.integers(1, tokens + 1))
            )
            length = min(length, end - at)
            places.append((row * tokens + at, length))
            at += length + (int(rng.integers(0, 5)) if kind == "gaps" else 0)
    return documents_of(places)


@dataclass
class Case:
    rows: int
    tokens: int
    kv_heads: int
    group: int
    dim: int
    documents: Documents
    window: int
    dtype: torch.dtype
    has_angles: bool
    layout: str
    seed: int

    def build(self) -> tuple[list[Tensor], tuple[Tensor, Tensor] | None, AttentionTerms]:
        """Query, key, value in the layout of the case, angles, terms."""
        generator = torch.Generator().manual_seed(self.seed)
        heads = [self.kv_heads * self.group, self.kv_heads, self.kv_heads]
        shapes = [(self.rows, self.tokens, count, self.dim) for count in heads]
        tensors = [torch.randn(shape, generator=generator).to(self.dtype) for shape in shapes]
        if self.layout == "heads first":
            tensors = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]
        elif self.layout == "packed":
            tensors = list(torch.cat(tensors, 2).split(heads, 2))
        elif self.layout == "last strided":
            tensors = [torch.stack((x, x), -1)[..., 0] for x in tensors]
        angles = None
        if self.has_angles:
            rows = self.rows if self.seed % 2 else 1
            half = torch.rand((rows, self.tokens, self.dim // 2), generator=generator) * 6.3
            angles = half.cos().repeat(1, 1, 2), half.sin().repeat(1, 1, 2)
        return tensors, angles, AttentionTerms(self.documents, self.dim**-0.5, self.window)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rows, seed = draw(st.integers(1, 3)), draw(st.integers(0, 10_000))
    tokens = draw(st.sampled_from([1, 2, 17, 63, 64, 65, 129, 333, 511, 512, 513, 577, 640, 699]))
    kinds = ["one", "gaps", "any", "padded left", "padded right", *(["ones", "odd"] if tokens < 300 else [])]
    kind = draw(st.sampled_from(kinds))
    group = draw(st.sampled_from([1, 2, 4, 8] if tokens < 300 else [1, 2, 4]))
    return Case(
        rows,
        tokens,
        draw(st.integers(1, 2)),
        group,
        draw(st.sampled_from([16, 32, 48, 64, 96, 128, 256] if tokens < 300 else [16, 48, 64, 80])),
        lay_out(kind, rows, tokens, np.random.default_rng(seed)),
        draw(st.sampled_from([0, 0, 1, 5, 64, 100, 600])),
        draw(st.sampled_from([torch.float32, torch.bfloat16])),
        draw(st.booleans()),
        draw(st.sampled_from(["plain", "heads first", "packed", "last strided"])),
        seed,
    )


def differentiate(function: Callable[..., Tensor], tensors: list[Tensor], *others: Any) -> list[Tensor]:
    """The output and the gradients of each tensor, for one gradient of the output whatever the type."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = function(*leaves, *others)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def differentiate_reference(tensors: list[Tensor], terms: AttentionTerms, angles: Any) -> list[Tensor]:
    exact = None if angles is None else tuple(x.double() for x in angles)
    return differentiate(references.attend, [x.double() for x in tensors], terms, exact)


def find_outside(documents: Documents, rows: int, tokens: int) -> Tensor:
    """(rows, tokens): of no document."""
    outside = torch.ones(rows * tokens, dtype=torch.bool)
    for start, length in zip(documents.starts.tolist(), documents.lengths.tolist(), strict=True):
        outside[start : start + length] = False
    return outside.view(rows, tokens)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_results_and_gradients_are_those_of_float64(case: Case):
    tensors, angles, terms = case.build()
    found = differentiate(attend, tensors, terms, angles)
    expected = differentiate_reference(tensors, terms, angles)
    # Gradients of few keys are what is left of numbers near 1, or 0: of the key of a document's only token.
    outside = find_outside(case.documents, case.rows, case.tokens)
    for name, one, other in zip(("out", "query", "key", "value"), found, expected, strict=True):
        assert one.dtype == case.dtype
        assert find_error(one, other, floor=0.5) < TOLERANCE[case.dtype], name
        assert not one[outside].any(), f"{name}: tokens of no document"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("tokens", "kv_heads", "group", "dim", "lengths", "window"),
    [
        (1300, 1, 2, 128, [1300], 0),  # several chunks of keys
        (1300, 1, 2, 32, [1201], 600),  # a window that begins in one chunk and ends in another
        (600, 1, 1, 256, [513, 64, 23], 0),
        (300, 2, 3, 16, [3] * 100, 0),
        (256, 4, 1, 64, [64] * 4, 0),  # enough tasks that none is split
    ],
)
def test_edges_of_chunks_windows_and_tasks(
    tokens: int, kv_heads: int, group: int, dim: int, lengths: list[int], window: int, dtype: torch.dtype
):
    starts = np.cumsum([0, *lengths[:-1]]).tolist()
    places = documents_of(list(zip(starts, lengths, strict=True)))
    tensors, angles, terms = Case(1, tokens, kv_heads, group, dim, places, window, dtype, True, "plain", 0).build()
    found = differentiate(attend, tensors, terms, angles)
    for one, other in zip(found, differentiate_reference(tensors, terms, angles), strict=True):
        assert find_error(one, other) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [[1], [65, 1, 63], [700], [513, 512, 2]], ids=str)
def test_packed_queries_keys_and_values_are_one_input(lengths: list[int], dtype: torch.dtype):
    tokens = sum(lengths)
    starts = np.cumsum([0, *lengths[:-1]]).tolist()
    case = Case(1, tokens, 2, 2, 16, documents_of(list(zip(starts, lengths, strict=True))), 0, dtype, True, "plain", 3)
    tensors, angles, terms = case.build()
    found = differentiate(attend_packed, [torch.cat(tensors, 2)], 2, terms, angles)
    out, *grads = differentiate_reference(tensors, terms, angles)
    assert find_error(found[0], out) < TOLERANCE[dtype]
    assert find_error(found[1], torch.cat(grads, 2)) < TOLERANCE[dtype]


@pytest.mark.parametrize(("dim", "value_dim"), [(8, 8), (20, 20), (33, 33), (80, 80), (24, 40), (48, 32)])
def test_head_sizes_that_the_kernel_does_not_compute_are_padded(dim: int, value_dim: int):
    torch.manual_seed(0)
    tensors = [torch.randn(2, 37, 4, dim), torch.randn(2, 37, 2, dim), torch.randn(2, 37, 2, value_dim)]
    terms = AttentionTerms(documents_of([(0, 20), (20, 17), (37, 30)]), dim**-0.5)
    for found, expected in zip(
        differentiate(attend, tensors, terms), differentiate_reference(tensors, terms, None), strict=True
    ):
        assert find_error(found, expected) < 1e-5
    if dim % 16:
        with pytest.raises(ValueError, match=f"angles need a head_dim that is a multiple of 16, not {value_dim}"):
            attend(tensors[0], tensors[1], tensors[2], terms, (torch.ones(1, 37, dim), torch.zeros(1, 37, dim)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hundreds_of_documents_in_any_number_of_threads_have_the_same_bits(dtype: torch.dtype):
    lengths = np.random.default_rng(0).integers(1, 9, 400)
    starts = np.cumsum(lengths) - lengths
    documents = documents_of(list(zip(starts.tolist(), lengths.tolist(), strict=True)))
    case = Case(1, int(lengths.sum()), 1, 4, 32, documents, 0, dtype, True, "plain", 0)
    check_bits(*case.build())


def test_one_document_in_any_number_of_threads_has_the_same_bits():
    case = Case(1, 600, 1, 4, 64, documents_of([(0, 600)]), 0, torch.float32, True, "plain", 0)
    check_bits(*case.build())


def check_bits(tensors: list[Tensor], angles: Any, terms: AttentionTerms) -> None:
    first = differentiate(attend, tensors, terms, angles)
    for one, other in zip(first, differentiate(attend, tensors, terms, angles), strict=True):
        assert torch.equal(one, other)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        others = differentiate(attend, tensors, terms, angles)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(first[0], others[0])
    assert torch.equal(first[1], others[1])  # queries; key gradients of one head may be summed in another order
    for one, other in zip(first, others, strict=True):
        assert find_error(one, other) < 1e-5


def test_scores_of_any_size_stay_finite_and_nan_stays_nan():
    torch.manual_seed(0)
    tensors = [torch.randn(1, 130, 1, 16) * size for size in (30, 30, 1)]
    terms = AttentionTerms(documents_of([(0, 130)]), 1.0)
    for found, expected in zip(
        differentiate(attend, tensors, terms), differentiate_reference(tensors, terms, None), strict=True
    ):
        assert find_error(found, expected) < 1e-2  # scores are near 1e4, whose last bit is 0.001
    tensors[1][0, 70] = float("nan")
    out = attend(tensors[0], tensors[1], tensors[2], terms)
    assert out[0, :70].isfinite().all()
    assert out[0, 70:].isnan().all()


def test_a_gradient_that_is_one_number_expanded():
    torch.manual_seed(0)
    leaves = [torch.randn(1, 20, 2, 16, requires_grad=True) for _ in range(3)]
    terms = AttentionTerms(documents_of([(0, 20)]), 0.25)
    attend(leaves[0], leaves[1], leaves[2], terms).sum().backward()
    exact = [x.detach().double().requires_grad_() for x in leaves]
    references.attend(exact[0], exact[1], exact[2], terms).sum().backward()
    for one, other in zip(leaves, exact, strict=True):
        assert one.grad is not None and other.grad is not None
        assert find_error(one.grad, other.grad) < 1e-5


def call(**changes: Any) -> Any:
    """The operator, of two rows of eight tokens, with some of its arguments changed."""
    given: dict[str, Any] = {
        "query": torch.zeros(2, 8, 4, 16),
        "key": torch.zeros(2, 8, 2, 16),
        "value": torch.zeros(2, 8, 2, 16),
        "cos": torch.zeros(1, 8, 16),
        "sin": torch.zeros(1, 8, 16),
        "starts": torch.tensor([0, 8]),
        "lengths": torch.tensor([8, 8]),
        "scale": 1.0,
        "window": 0,
    } | changes
    return ops.attention(*given.values())


MAX = 2**63 - 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": torch.zeros(2, 8, 64)}, r"\(rows, tokens, heads, dim\)"),
        ({"key": torch.zeros(2, 7, 2, 16)}, "key and value differ in shape"),
        ({"key": torch.zeros(2, 7, 2, 16), "value": torch.zeros(2, 7, 2, 16)}, "query and key differ in shape"),
        ({"query": torch.zeros(2, 8, 3, 16)}, "no multiple of key heads"),
        ({"query": torch.zeros(2, 8, 0, 16)}, "no multiple of key heads"),
        ({name: torch.zeros(2, 8, 2, 24) for name in ("query", "key", "value")}, "no multiple of 16: 24"),
        ({"query": torch.zeros(2, 8, 16, 4).transpose(2, 3)}, "must be dense"),
        ({"value": torch.zeros(2, 8, 2, 16, dtype=torch.bfloat16)}, "differ in type"),
        (
            {name: torch.zeros(2, 8, 2, 16, dtype=torch.float64) for name in ("query", "key", "value")},
            "expected float32 or bfloat16, not Double",
        ),
        ({"sin": None}, "cos and sin come together"),
        ({"cos": torch.zeros(1, 8, 16, dtype=torch.bfloat16)}, "angles: float32"),
        ({"cos": torch.zeros(1, 8, 8), "sin": torch.zeros(1, 8, 8)}, r"\(rows or 1, tokens, head_dim\)"),
        ({"cos": torch.zeros(1, 7, 16), "sin": torch.zeros(1, 7, 16)}, r"\(rows or 1, tokens, head_dim\)"),
        ({"scale": 0.0}, "scale must be positive"),
        ({"scale": float("nan")}, "scale must be positive"),
        ({"window": -1}, "window 0 or more"),
        ({"starts": torch.tensor([0])}, "one of each per document"),
        ({"starts": torch.tensor([0, 8], dtype=torch.int32)}, "int64"),
        ({"starts": torch.tensor([-1, 8])}, "leaves its row"),
        ({"starts": torch.tensor([0, 16])}, "leaves its row"),
        ({"lengths": torch.tensor([9, 8])}, "leaves its row of 8"),
        ({"lengths": torch.tensor([8, -1])}, "leaves its row"),
        ({"starts": torch.tensor([1, 8]), "lengths": torch.tensor([MAX, 8])}, "leaves its row"),
        ({"starts": torch.tensor([0, 4]), "lengths": torch.tensor([8, 4])}, "begins before the end of another"),
        ({name: torch.zeros(2, 0, 2, 16) for name in ("query", "key", "value")} | {"cos": None, "sin": None}, "leaves"),
    ],
)
def test_what_does_not_fit_is_an_error(changes: dict[str, Any], message: str):
    with pytest.raises(RuntimeError, match=message):
        call(**changes)


def test_results_that_do_not_suit_their_inputs_are_an_error():
    query, key = torch.zeros(1, 8, 2, 16), torch.zeros(1, 8, 1, 16)
    documents = torch.tensor([0]), torch.tensor([8])
    out, log_sums = ops.attention(query, key, key, None, None, *documents, 1.0, 0)

    def differentiate_into(grad: Any = out, sums: Any = log_sums, of_query: Any = None, of_key: Any = None) -> None:
        results = (torch.empty_like(query) if of_query is None else of_query, *([of_key] * 2))
        results = tuple(torch.empty_like(key) if x is None else x for x in results)
        ops.attention_backward(grad, query, key, key, None, None, out, sums, *documents, 1.0, 0, *results)

    differentiate_into()
    with pytest.raises(RuntimeError, match="the output or its gradient does not suit"):
        differentiate_into(grad=torch.zeros(1, 7, 2, 16))
    with pytest.raises(RuntimeError, match="log_sums"):
        differentiate_into(sums=torch.zeros(1, 2, 7))
    with pytest.raises(RuntimeError, match="the results do not suit the inputs"):
        differentiate_into(of_query=torch.zeros(1, 4, 2, 16), of_key=torch.zeros(1, 4, 1, 16))


@pytest.mark.parametrize("tokens", [0, 5])
def test_a_batch_without_documents_is_zeros(tokens: int):
    tensors = [torch.ones(2, tokens, 2, 16) for _ in range(3)]
    results = differentiate(attend, tensors, AttentionTerms(documents_of([]), 1.0))
    assert not any(x.any() for x in results)
