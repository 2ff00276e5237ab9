"""Every field of TrainingArguments: refused, forced, or shown to do what its documentation says, in one table.

A field of a newer transformers fails the test until somebody has said what becomes of it.
"""

import dataclasses
import importlib.util

import pytest
from transformers import TrainingArguments

from data_prep.errors import UserError
from training.config import load_config
from training.config.synonyms import NAMES
from training.config.training_fields import REFUSED, training_section
from training.run.build import FORCED_ARGUMENTS

FIELDS = {field.name for field in dataclasses.fields(TrainingArguments)}

# Taken field -> the test that shows it, or what of transformers does as it says and nothing here touches.
SHOWN = {
    "output_dir": "tests/run/test_session.py",
    "per_device_train_batch_size": "tests/integration/test_arguments.py",
    "num_train_epochs": "tests/integration/test_resume.py",
    "max_steps": "tests/integration/test_arguments.py",
    "learning_rate": "tests/integration/test_arguments.py",
    "lr_scheduler_type": "tests/integration/test_arguments.py",
    "lr_scheduler_kwargs": "tests/run/test_build.py",
    "warmup_steps": "tests/integration/test_arguments.py",
    "optim": "tests/config/test_optimizers.py",
    "optim_args": "tests/config/test_optimizers.py",
    "optim_target_modules": "tests/config/test_optimizers.py",
    "weight_decay": "tests/integration/test_arguments.py",
    "adam_beta1": "tests/integration/test_arguments.py",
    "adam_beta2": "tests/integration/test_arguments.py",
    "adam_epsilon": "tests/integration/test_arguments.py",
    "gradient_accumulation_steps": "tests/integration/test_arguments.py",
    "average_tokens_across_devices": "tests/integration/test_arguments.py",
    "max_grad_norm": "tests/integration/test_arguments.py",
    "label_smoothing_factor": "tests/integration/test_arguments.py",
    "bf16": "tests/integration/test_resume.py",
    "fp16": "tests/run/test_build.py",
    "tf32": "TrainingArguments sets torch's switch",
    "activation_checkpointing": "another name of gradient_checkpointing",
    "activation_checkpointing_kwargs": "another name of gradient_checkpointing_kwargs",
    "gradient_checkpointing": "tests/integration/test_arguments.py",
    "gradient_checkpointing_kwargs": "Trainer passes them on",
    "torch_compile": "accelerate compiles what it prepares",
    "torch_compile_backend": "accelerate compiles what it prepares",
    "torch_compile_mode": "accelerate compiles what it prepares",
    "use_liger_kernel": "tests/config/test_contradictions.py",
    "liger_kernel_config": "tests/config/test_every_argument.py",
    "use_cache": "Trainer sets the model's config",
    "neftune_noise_alpha": "tests/integration/test_options.py",
    "log_on_each_node": "of transformers' own lines",
    "log_level": "of transformers' own lines",
    "log_level_replica": "of transformers' own lines",
    "report_to": "tests/callbacks/test_sinks.py",
    "run_name": "tests/callbacks/test_sinks.py",
    "project": "tests/config/test_trackers.py",
    "eval_strategy": "tests/integration/test_options.py",
    "eval_steps": "tests/integration/test_options.py",
    "eval_delay": "DefaultFlowCallback goes by it",
    "per_device_eval_batch_size": "tests/integration/test_resume.py",
    "eval_on_start": "tests/integration/test_options.py",
    "save_only_model": "tests/checkpoints/test_manifest.py",
    "save_strategy": "tests/integration/test_options.py",
    "save_steps": "tests/integration/test_resume.py",
    "save_on_each_node": "Trainer's should_save goes by it",
    "save_total_limit": "tests/integration/test_options.py",
    "load_best_model_at_end": "Trainer loads it after the last step",
    "metric_for_best_model": "tests/config/test_every_argument.py",
    "greater_is_better": "tests/config/test_every_argument.py",
    "full_determinism": "Trainer switches torch's algorithms",
    "seed": "tests/integration/test_arguments.py",
    "use_cpu": "tests/test_launch.py",
    "dataloader_drop_last": "tests/data/test_loader.py",
    "dataloader_num_workers": "tests/data/test_loader.py",
    "dataloader_pin_memory": "tests/data/test_loader.py",
    "dataloader_persistent_workers": "tests/data/test_loader.py",
    "dataloader_prefetch_factor": "tests/data/test_loader.py",
    "dataloader_multiprocessing_context": "training/data/loader.py passes it on",
    "remove_unused_columns": "must stay false",
    "ddp_find_unused_parameters": "accelerate passes it to DDP",
    "ddp_bucket_cap_mb": "accelerate passes it to DDP",
    "ddp_broadcast_buffers": "accelerate passes it to DDP",
    "ddp_static_graph": "accelerate passes it to DDP",
    "ddp_timeout": "tests/test_launch.py",
    "fsdp": "Trainer refuses it on one rank",
    "fsdp_config": "tests/config/test_every_argument.py",
    "debug": "tests/config/test_every_argument.py",
}


def test_every_field_is_refused_or_shown() -> None:
    assert set(SHOWN) == FIELDS - set(REFUSED)
    assert set(SHOWN) == set(training_section().model_fields)
    assert set(FORCED_ARGUMENTS) <= FIELDS


@pytest.mark.parametrize("name", sorted(set(REFUSED) - set(NAMES.synonyms)))  # a synonym stands for a key of ours
def test_a_refused_field_says_why(name: str) -> None:
    with pytest.raises(UserError) as error:
        load_config([f"training.{name}=1"])
    assert f"training.{name}=1: {REFUSED[name]}" in str(error.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--metric_for_best_model", "accuracy"], "evaluation computes only the loss"),
        (["--greater_is_better", "true"], "whose lowest value is the best"),
        (["--save_strategy", "best", "--eval_strategy", "no"], "evaluations choose the best checkpoint"),
        (["--lr_scheduler_type", "greedy", "--eval_strategy", "no"], "greedy depends on the evaluation loss"),
        (["--lr_scheduler_type", "reduce_lr_on_plateau", "--eval_strategy", "no"], "depends on the evaluation loss"),
        (["--eval_on_start", "true", "--eval_strategy", "no"], "the run does not evaluate"),
        (["training.fsdp_config={min_num_params: 1}"], "applies only to training.fsdp, which is not set"),
        (["training.liger_kernel_config={rope: true}"], "applies only to training.use_liger_kernel, which is not set"),
        (["training.gradient_checkpointing_kwargs={use_reentrant: false}"], "which is not set"),
        (["--debug", "tpu_metrics_debug"], "TPUs are not supported"),
        (["--label_smoothing_factor", "1"], "is 1: must be 0 or above and below 1"),
        (["--adam_beta2", "1.5"], "is 1.5: must be 0 or above and below 1"),
    ],
)
def test_what_would_count_for_nothing_or_fail_late(flags: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(flags)
    assert message in str(error.value) and "command line" in str(error.value)


def test_liger_s_loss_knows_no_smoothing(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["model.path=x", "--use_liger_kernel"]
    if importlib.util.find_spec("liger_kernel") is None:
        with pytest.raises(UserError, match="pip install liger-kernel"):
            load_config(flags)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find("torch" if name == "liger_kernel" else name))
    with pytest.raises(UserError, match="label smoothing needs the logits"):
        load_config([*flags, "--label_smoothing_factor", "0.1"])
