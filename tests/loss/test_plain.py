"""Smoothing against a hand-written sum, and the model's own loss without it, on each kind of model that is built."""

import math

import pytest
import torch

from tests.models.tiny import SHAPE, build_tiny
from training.loss.plain import build_loss, next_token_loss
from training.loss.terms import PLAIN, LossTerms

FACTOR = 0.1
# Two packed documents of 5 and 3 tokens: the first token of the second one carries no loss.
LABELS = torch.tensor([[-100, 7, 3, 9, 1, -100, 4, 2]])
POSITIONS = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]])
IDS = torch.tensor([[5, 7, 3, 9, 1, 8, 4, 2]])


def by_hand(logits: torch.Tensor, labels: torch.Tensor, factor: float) -> list[float]:
    """Of each token with loss: (1 - factor) x its surprise + factor x the mean surprise of all words."""
    losses = []
    for row, targets in zip(logits.double(), labels, strict=True):
        for position in range(len(targets) - 1):
            target = int(targets[position + 1])
            if target != -100:
                scores = row[position].tolist()
                norm = math.log(sum(math.exp(score) for score in scores))
                mean = norm - sum(scores) / len(scores)
                losses.append((1 - factor) * (norm - scores[target]) + factor * mean)
    return losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sum_over_next_tokens(dtype):
    torch.manual_seed(0)
    logits = (3 * torch.randn(1, 8, 16)).to(dtype)
    expected = by_hand(logits, LABELS, FACTOR)
    assert len(expected) == 6
    mean = next_token_loss(logits, LABELS, LossTerms(FACTOR))
    assert mean.item() == pytest.approx(sum(expected) / 6, rel=1e-6)  # in bf16 too: computed in float32
    accumulated = next_token_loss(logits, LABELS, LossTerms(FACTOR), torch.tensor(24))
    assert accumulated.item() == pytest.approx(sum(expected) / 24, rel=1e-6)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    build_tiny({"config": {"model_type": "llama", **SHAPE}}).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["minigpt", "qwen2", "llama", "lora"])
def test_of_every_model_the_evaluation_is_its_own_loss_and_the_training_is_smoothed(kind, base):
    if kind == "lora":
        model = build_tiny({"path": base}, {"method": "lora"})
    else:
        model = build_tiny({"kind": "minigpt", "config": SHAPE} if kind == "minigpt" else of_type(kind))
    model.eval()
    training = True
    loss = build_loss(LossTerms(FACTOR), lambda: training)
    assert loss is not None
    outputs = model(input_ids=IDS, position_ids=POSITIONS, labels=LABELS)
    smoothed = loss(outputs, LABELS, None)
    training = False
    assert loss(outputs, LABELS, None).item() == pytest.approx(outputs.loss.item(), rel=1e-5)
    assert smoothed.item() == pytest.approx(sum(by_hand(outputs.logits.detach(), LABELS, FACTOR)) / 6, rel=1e-5)
    assert abs(smoothed.item() - outputs.loss.item()) > 1e-5


def of_type(kind):
    return {"config": {"model_type": kind, **SHAPE}}


def test_without_smoothing_the_model_s_own_loss_stays():
    assert build_loss(PLAIN, lambda: True) is None
