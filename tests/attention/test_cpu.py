"""Our CPU attention inside models of transformers, against their eager attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.tiny import SHAPE, VOCAB_SIZE, build_tiny
from training.attention import cpu
from training.kernels.cpu import build
from training.kernels.cpu.functions import Documents

pytestmark = pytest.mark.skipif(build.find_obstacle() is not None, reason=str(build.find_obstacle()))

QWEN2 = {"model_type": "qwen2", **SHAPE}
WINDOWED = QWEN2 | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
MISTRAL = {"model_type": "mistral", **SHAPE, "sliding_window": 7}


def build_both(config: dict[str, Any]) -> tuple[Any, Any]:
    """The same model with our attention and with eager attention."""
    return tuple(build_tiny({"config": config, "attn_implementation": name}) for name in (cpu.NAME, "eager"))  # pyright: ignore[reportReturnType]


def compute(model: Any, batch: dict[str, Any], real: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits = model(**batch, use_cache=False).logits[real]
    logits.float().log_softmax(-1)[:, 3].sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("config", [QWEN2, WINDOWED, MISTRAL], ids=["qwen2", "windowed", "mistral"])
@pytest.mark.parametrize("kind", ["whole", "padded", "padded left", "packed"])
def test_it_computes_what_eager_attention_does(config: dict[str, Any], kind: str) -> None:
    ours, eager = build_both(config)
    torch.manual_seed(1)
    batch: dict[str, Any] = {"input_ids": torch.randint(0, VOCAB_SIZE, (2, 24))}
    real = torch.ones(2, 24, dtype=torch.bool)
    if kind.startswith("padded"):
        real[1, : 9 if kind == "padded left" else 0] = False
        real[1, 15 if kind == "padded" else 24 :] = False
        batch["attention_mask"] = real.long()
        batch["position_ids"] = (real.cumsum(1) - 1).clamp(min=0)
    elif kind == "packed":
        batch["position_ids"] = torch.tensor([[*range(10), *range(14)], [*range(1), *range(20), *range(3)]])
    (logits, grads), (expected, others) = (compute(model.train(), batch, real) for model in (ours, eager))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, others[name], rtol=1e-3, atol=1e-5, msg=name)


def test_generation_writes_the_same_tokens() -> None:
    ours, eager = build_both(QWEN2)
    ids = torch.randint(3, VOCAB_SIZE, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0  # padded on the left
    written = [
        model.eval().generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
        for model in (ours, eager)
    ]
    assert torch.equal(*written)


def test_dropout_is_left_to_sdpa_within_documents() -> None:
    ours, _ = build_both(QWEN2 | {"attention_dropout": 0.5})
    ids = torch.randint(0, VOCAB_SIZE, (1, 20))
    positions = torch.tensor([[*range(8), *range(12)]])
    other = ids.clone()
    other[0, :8] = 5
    results = []
    for one in (ids, ids, other):
        torch.manual_seed(3)
        results.append(ours.train()(input_ids=one, position_ids=positions, use_cache=False).logits)
    assert torch.equal(results[0], results[1])
    torch.testing.assert_close(results[0][0, 8:], results[2][0, 8:])  # the second document sees nothing of the first
    assert not torch.allclose(results[0], ours.eval()(input_ids=ids, position_ids=positions, use_cache=False).logits)


def test_spread_is_the_mask_of_documents() -> None:
    documents = Documents(torch.tensor([0, 2]), torch.tensor([2, 2]))
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    assert cpu.spread(documents, 1, 5).int().tolist() == [[expected]]
    assert cpu.spread(documents, 1, 5, window=1).int().tolist() == [[torch.eye(5).int().tolist()]]
