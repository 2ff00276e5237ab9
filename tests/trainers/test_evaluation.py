"""The validation loss is of tokens, and an evaluation says how far it has come."""

import math
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Trainer

from training.trainers import evaluation
from training.trainers.evaluation import TokenMeanEvaluation


def test_an_evaluation_says_how_far_it_has_come(monkeypatch):
    seen = []

    @contextmanager
    def spy(what, total, unit):
        seen.append((what, total, unit))
        yield seen.append

    def evaluate(self, batches):
        for batch in batches:
            self.prediction_step(batch)
        return SimpleNamespace(metrics=None)

    trainer: Any = TokenMeanEvaluation.__new__(TokenMeanEvaluation)
    trainer._eval_batches = []
    monkeypatch.setattr(evaluation, "progress", spy)
    monkeypatch.setattr(Trainer, "prediction_step", lambda self, batch: (None,))
    monkeypatch.setattr(Trainer, "evaluation_loop", evaluate)
    trainer.evaluation_loop(["batch", "batch", "batch"])
    assert seen == [("evaluating", 3, "batches"), 1, 1, 1]


@pytest.mark.parametrize("takes_tokens", [False, True])
def test_a_validation_loss_is_a_mean_over_tokens(takes_tokens):
    trainer: Any = TokenMeanEvaluation.__new__(TokenMeanEvaluation)
    device = torch.device("cpu")
    trainer.args = SimpleNamespace(world_size=1, device=device, average_tokens_across_devices=True)
    trainer.model_accepts_loss_kwargs, trainer.compute_loss_func = takes_tokens, None
    trainer._eval_batches = [(2.0, 1, 4), (4.0, 3, 8), (math.nan, 0, 0)]  # the last one is padding alone
    mean, bits_per_byte = trainer._mean_eval_loss()
    assert mean == 14.0 / 4
    assert bits_per_byte == pytest.approx(14.0 / math.log(2) / 12)
