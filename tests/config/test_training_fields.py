"""The reading of the source is compared with the class itself."""

import dataclasses
import enum
import importlib.util
from typing import get_args

import pytest
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from data_prep.errors import UserError
from training.config import training_fields
from training.config.training_fields import DEFAULTS, REFUSED, REMOVED, fields, hf_defaults, training_section

REAL = {field.name: field for field in dataclasses.fields(TrainingArguments)}


def test_exactly_the_fields_of_the_class() -> None:
    assert set(fields()) == set(REAL)
    assert set(training_section().model_fields) == set(REAL) - set(REFUSED)


@pytest.mark.parametrize(
    ("field", "values"),
    [("optim", OptimizerNames), ("lr_scheduler_type", SchedulerType), ("eval_strategy", IntervalStrategy)],
)
def test_enums_become_their_values(field: str, values: type[enum.Enum]) -> None:
    assert set(get_args(fields()[field][0])) == {member.value for member in values}


def test_literal_defaults() -> None:
    for name, value in hf_defaults().items():
        assert REAL[name].default == value, name
    for name in ("max_grad_norm", "gradient_accumulation_steps", "adam_beta1", "save_steps", "eval_strategy"):
        assert name in hf_defaults()


def test_help_texts() -> None:
    assert fields()["learning_rate"][1] == REAL["learning_rate"].metadata["help"]


def test_our_defaults_are_arguments_and_differ() -> None:
    training_section().model_validate(DEFAULTS, strict=True)
    for name, value in DEFAULTS.items():
        assert hf_defaults().get(name) != value or name in ("save_strategy", "report_to"), (
            f"{name} repeats HF's default"
        )


def test_removed_names_are_removed() -> None:
    assert not set(REMOVED) & set(REAL)


def test_a_python_without_transformers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"transformers is not installed in this Python: .* source \.venv/bin/activate"):
        training_fields._package()
