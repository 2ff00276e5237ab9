"""What the objects of a run are built from is checked before they are."""

import pytest
from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType

from data_prep.errors import UserError
from training.run.build import check_schedule

NEEDED = {
    "warmup_stable_decay": {"num_decay_steps": 3},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
}


def build_arguments(tmp_path, name, **kwargs) -> TrainingArguments:
    return TrainingArguments(
        str(tmp_path),
        use_cpu=True,
        max_steps=10,
        eval_strategy="steps",  # some schedules look at the validation loss
        eval_steps=5,
        lr_scheduler_type=name,
        lr_scheduler_kwargs=kwargs or None,
    )


@pytest.mark.parametrize("name", [kind.value for kind in SchedulerType])
def test_every_schedule_is_built_with_what_it_needs_and_refused_with_what_it_has_not(tmp_path, name):
    check_schedule(build_arguments(tmp_path, name, **NEEDED.get(name, {})))
    if name in NEEDED:
        with pytest.raises(UserError, match=f"training.lr_scheduler_kwargs: .* does not suit {name}"):
            check_schedule(build_arguments(tmp_path, name))


def test_a_misspelt_argument_of_a_schedule_is_named(tmp_path):
    with pytest.raises(UserError, match="'num_cycle': 2.* does not suit cosine.*num_cycle"):
        check_schedule(build_arguments(tmp_path, "cosine", num_cycle=2))
