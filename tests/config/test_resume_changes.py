"""What may change on a resume: every field has a rule, and what is found is told with both values."""

import json
from pathlib import Path

import pytest

from data_prep.errors import UserError
from training.config import load_config
from training.config.resume_changes import FREE, RULES, TAKES_EFFECT, describe_settings, find_changes, find_rule
from training.config.sections import AdapterSection, ModelSection
from training.config.training_fields import training_section

CHECKPOINT = Path("runs/x/checkpoint-5")


def settings(*flags):
    return describe_settings(load_config(["--config", "debug", *flags]))


def changes(before, now):
    stored = json.loads(json.dumps(settings(*before)))  # as a manifest has them
    return find_changes(CHECKPOINT, 5, stored, settings(*now))


def test_every_field_of_training_arguments_has_a_rule_of_its_own():
    fields = {f"training.{name}" for name in training_section().model_fields}
    rules = {key for key in RULES if key.startswith("training.")}
    assert rules == fields
    for section, model in (("model", ModelSection), ("adapter", AdapterSection)):
        assert all(find_rule(f"{section}.{name}") for name in model.model_fields)
    assert "is unknown" in find_rule("unheard.of")


def test_nothing_changed():
    assert changes([], []) == []
    assert changes(["--deepspeed", "zero2_bf16"], ["--deepspeed", "zero2_bf16"]) == []


@pytest.mark.parametrize(
    ("flag", "key", "old", "new"),
    [
        ("--learning_rate=2e-5", "training.learning_rate", 1e-3, 2e-5),
        ("--weight_decay=0.5", "training.weight_decay", 0.1, 0.5),
        ("--adam_beta2=0.9", "training.adam_beta2", 0.95, 0.9),
        ("--max_grad_norm=0.1", "training.max_grad_norm", 1.0, 0.1),
        ("--label_smoothing_factor=0.1", "training.label_smoothing_factor", 0.0, 0.1),
        ("--lr_scheduler_type=linear", "training.lr_scheduler_type", "cosine", "linear"),
        ("training.lr_scheduler_kwargs={num_cycles: 1}", "training.lr_scheduler_kwargs", None, {"num_cycles": 1}),
    ],
)
def test_what_takes_effect(flag, key, old, new):
    [change] = changes([], [flag])
    assert (change.key, change.old, change.new, change.step) == (key, old, new, 5)
    assert change.message == f"{key}: {json.dumps(old)} -> {json.dumps(new)} from step 6"


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ([], ["--optim=sgd"], 'training.optim was "adamw_torch_fused" and is now "sgd"'),
        ([], ["--training.seed=7"], "training.seed was 42 and is now 7"),
        ([], ["--bf16=false"], "training.bf16 was true and is now false"),
        ([], ["model.config.hidden_size=96"], "model.config.hidden_size was 64 and is now 96"),
        ([], ["model.config.hidden_act=gelu"], 'model.config.hidden_act was null and is now "gelu"'),
        ([], ["--deepspeed", "zero2_bf16"], "deepspeed.used was false and is now true"),
        (
            ["--deepspeed", "zero2_bf16"],
            ["--deepspeed", "zero3_bf16"],
            "deepspeed.zero_optimization.stage was 2 and is now 3",
        ),
        (
            ["--lr_scheduler_type=reduce_lr_on_plateau", "--eval_strategy=steps"],
            ["--eval_strategy=steps"],
            'lr_scheduler_type was "reduce_lr_on_plateau" and is now "cosine"',
        ),
    ],
)
def test_what_cannot_change_is_refused_with_both_values_and_the_way_out(before, now, message):
    with pytest.raises(UserError) as error:
        changes(before, now)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{CHECKPOINT}: ") and "--resume never" in str(error.value)


def test_what_is_not_trained_is_not_compared():
    assert RULES["training.save_steps"] == FREE and RULES["training.learning_rate"] == TAKES_EFFECT
    assert changes([], ["--save_steps=7", "--output_dir=elsewhere", "model.attn_implementation=eager"]) == []
    assert changes([], ["perf.allocator=off"]) == []


def test_an_older_checkpoint_goes_by_the_run_s_config(tmp_path, caplog):
    checkpoint = tmp_path / "checkpoint-5"
    assert find_changes(checkpoint, 5, None, settings()) == []
    assert "the checkpoint has no settings" in caplog.text
    (tmp_path / "config.yaml").write_text("training:\n  learning_rate: 0.002\n  optim: adamw_torch_fused\n")
    [change] = find_changes(checkpoint, 5, None, settings("--learning_rate=1e-4"))
    assert (change.old, change.new) == (0.002, 1e-4)


def test_an_adapter_goes_on_with_its_own_base_alone(tmp_path):
    for name, data in (("base", b"one"), ("moved", b"one"), ("other", b"two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(data)

    def with_base(name):
        return ["--model.path", str(tmp_path / name), "--adapter.method", "lora"]

    [change] = changes(with_base("base"), with_base("moved"))
    assert change.key == "model.path"
    with pytest.raises(UserError, match="model.base was .* trained on the old weights"):
        changes(with_base("base"), with_base("other"))
    with pytest.raises(UserError, match="trained on the old weights"):
        changes(with_base("org/one"), with_base("org/two"))
