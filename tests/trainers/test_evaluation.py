"""The validation loss is of tokens, and an evaluation says how far it has come."""

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

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
