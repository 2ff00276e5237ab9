"""PyTorch's attention for documents of any length on a GPU, compared with float32 SDPA. Skipped, with the reason,
where there is no GPU that has it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from training.attention import torch_varlen
from training.attention.kernels import Compute, find_kernel
from training.attention.unmasked import spread
from training.kernels.cpu.functions import Documents


def find_obstacle() -> str:
    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU"
    return find_kernel(torch_varlen.NAME).obstacle_here(Compute("cuda", torch.bfloat16, packed=True)) or ""


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(find_obstacle()), reason=find_obstacle() or "none")]

MODULE: Any = SimpleNamespace(is_causal=True, num_key_value_groups=2)
ROWS, TOKENS, HEADS = 2, 512, 4
ENDS = (0, 130, 131, 512, 700, 700, 1024)


def make_batch(kind: str) -> tuple[Tensor | None, dict[str, Any], Documents]:
    """Mask, settings of the call, and the documents as a reference has them."""
    if kind == "boundaries":
        ends = torch.tensor(ENDS, dtype=torch.int32, device="cuda")
        return None, {"cu_seq_lens_q": ends, "max_length_q": 381}, Documents(ends[:-1].long(), ends.diff().long())
    starts, lengths = torch.tensor([0, TOKENS], device="cuda"), torch.tensor([TOKENS, TOKENS], device="cuda")
    if kind == "whole":
        return None, {}, Documents(starts, lengths)
    mask = torch.ones(ROWS, TOKENS, dtype=torch.bool, device="cuda")
    mask[0, :100] = mask[1, 300:] = False
    return mask, {}, Documents(starts + torch.tensor([100, 0], device="cuda"), mask.sum(1))


@pytest.mark.parametrize("kind", ["boundaries", "whole", "padded"])
@pytest.mark.parametrize("dim", [64, 128, 20])
@pytest.mark.parametrize("window", [None, 70])
def test_output_and_gradients_are_those_of_float32_sdpa(kind: str, dim: int, window: int | None):
    mask, settings, documents = make_batch(kind)
    torch.manual_seed(0)
    given = [torch.randn(ROWS, TOKENS, n, dim, device="cuda").bfloat16() for n in (HEADS, HEADS // 2, HEADS // 2)]
    weights = torch.randn(ROWS, TOKENS, HEADS, dim, device="cuda")
    weights *= 1.0 if mask is None else mask[..., None, None]  # nobody asks what padding attends to

    def run(attend: Any, dtype: torch.dtype) -> list[Tensor]:
        inputs = [x.to(dtype).requires_grad_() for x in given]
        out = attend(*(x.transpose(1, 2) for x in inputs))
        loss = (out.float() * weights).sum()
        return [out.float() * (weights != 0), *(g.float() for g in torch.autograd.grad(loss, inputs))]

    def attend_exactly(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        seen = spread(documents, ROWS, TOKENS, window or 0)
        return scaled_dot_product_attention(query, key, value, seen, enable_gqa=True).transpose(1, 2)

    def attend_ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch_varlen.attend_documents(MODULE, query, key, value, mask, sliding_window=window, **settings)[0]

    for name, ours, exact in zip(
        ("output", "query", "key", "value"), run(attend_ours, torch.bfloat16), run(attend_exactly, torch.float32),
        strict=True,
    ):  # fmt: skip
        error = float((ours - exact).norm() / exact.norm())
        assert error < 0.02, f"{name}: {error}"  # a bfloat16 has 8 bits, 0.4 %


@pytest.mark.parametrize("kind", ["boundaries", "whole", "padded"])
def test_the_host_never_waits(kind: str):
    mask, settings, _ = make_batch(kind)
    query, key, value = (
        torch.randn(ROWS, n, TOKENS, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for n in (4, 2, 2)
    )
    torch_varlen.attend_documents(MODULE, query, key, value, mask, **settings)[0].sum().backward()  # kernels are loaded
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for dropout in (0.0, 0.1):
            out, _ = torch_varlen.attend_documents(MODULE, query, key, value, mask, dropout=dropout, **settings)
            out.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode(before)
