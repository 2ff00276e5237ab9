"""Every key that DeepSpeed reads, in one table: taken as it is, filled in, or refused; a new one fails the test."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from training.config import load_config
from training.config.deepspeed_json import key_table

# Block or key -> why it is passed on as it is. Those tried in a training are marked in test_options.py.
TAKEN = {
    "aio": "read by offloading to NVMe",
    "bf16": "compared with training.bf16",
    "checkpoint": "tag_validation, use_node_local_storage: read when a checkpoint is written",
    "comms_logger": "counts collectives",
    "communication_data_type": "type of the collectives",
    "data_types": "type of accumulated gradients",
    "disable_allgather": "how the engine gathers",
    "disable_python_gc": "of the engine's steps",
    "dump_state": "prints the set-up",
    "flops_profiler": "prints a profile of one step",
    "fp16": "compared with training.fp16",
    "gradient_accumulation_steps": "compared with the recipe",
    "gradient_allreduce_op": "how the engine reduces",
    "gradient_clipping": "compared with training.max_grad_norm",
    "gradient_predivide_factor": "how the engine reduces",
    "log_level": "of DeepSpeed's own lines",
    "memory_breakdown": "prints memory",
    "optimizer": "in the place of training.optim",
    "prescale_gradients": "how the engine reduces",
    "scheduler": "in the place of training.lr_scheduler_type",
    "seq_parallel_communication_data_type": "type of collectives that there are none of",
    "steps_per_print": "prints the rate",
    "timers": "the engine's own timers",
    "torch_autocast": "in the place of the bf16 block",
    "train_batch_size": "compared with the recipe",
    "train_micro_batch_size_per_gpu": "compared with the recipe",
    "use_data_before_expert_parallelism": "order of groups that there are none of",
    "vocabulary_size": "a hint",
    "wall_clock_breakdown": "prints times",
    "zero_allow_untested_optimizer": "of the optimizer block",
    "zero_force_ds_cpu_optimizer": "of offloading",
    "zero_optimization": "ZeRO",
}
REFUSED: dict[str, Any] = {
    "activation_checkpointing": {"partition_activations": True},
    "autotuning": {"enabled": True},
    "comet": {"enabled": True},
    "compile": {"deepcompile": True},
    "csv_monitor": {"enabled": True},
    "data_efficiency": {"enabled": True},
    "dataloader_drop_last": True,
    "datastates_ckpt": {"host_cache_size": 1},
    "expert_parallel": {"enabled": True},
    "hybrid_engine": {"enabled": True},
    "managed_gradient_accumulation": False,
    "pipeline": {"stages": 2},
    "sequence_parallel_size": 2,
    "tensor_parallel": {"autotp_size": 2},
    "tensorboard": {"enabled": True},
    "wandb": {"enabled": True},
    "weight_quantization": {"enabled": True},
}
RENAMED = {"bfloat16"}


def load(values: dict[str, Any], *argv: str) -> Any:
    Path("ds.json").write_text(json.dumps(values, indent=1), encoding="utf-8")
    return load_config(["--deepspeed", "ds.json", *argv], 1)


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_key_of_deepspeed_is_taken_renamed_or_refused() -> None:
    assert {*TAKEN, *REFUSED, *RENAMED} == set(key_table()["keys"])
    assert not set(TAKEN) & set(REFUSED)


@pytest.mark.parametrize("key", REFUSED)
def test_what_would_do_nothing_is_refused_where_it_is_on(key: str) -> None:
    with pytest.raises(UserError, match=rf"^ds\.json:\d: {key}: .+"):
        load({key: REFUSED[key]})
    if isinstance(REFUSED[key], dict) and "enabled" in REFUSED[key]:
        load({key: {"enabled": False}})


@pytest.mark.parametrize("key", key_table()["removed"])
def test_what_deepspeed_has_removed_is_refused(key: str) -> None:
    block, _, inner = key.partition(".")
    with pytest.raises(UserError, match=f"{key}: .*removed"):
        load({block: {inner: 1} if inner else {"enabled": True}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"zero_optimization": {"stage": 1, "offload_param": {"device": "cpu"}}}, "offload_param: needs .*stage 3"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "offload_optimizer: needs .*stage 1"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            "nvme needs a directory: set nvme_path",
        ),
        ({"zero_optimization": {"stage": 2, "cpu_offload": True}}, "cpu_offload: is ignored by DeepSpeed"),
        (
            {"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": False}},
            "stage3_gather_16bit_weights_on_model_save: is false, so final/ would contain no weights",
        ),
        ({"zero_optimization": {"stage": 2, "overlap_comm": "auto"}}, 'overlap_comm = "auto": this key does not take'),
        ({"scheduler": {"type": "StepLR", "params": {"step_size": 2}}}, "use training.lr_scheduler_type"),
        ({"scheduler": {"type": "OneCycle"}}, "set cycle_min_lr"),
        (
            {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 0}}},
            "must be a number of steps, 1 or more",
        ),
        ({"optimizer": {"type": "MuAdam"}}, "pip install mup"),
        ({"optimizer": {"type": "SGD"}, "zero_optimization": {"stage": 1}}, "zero_allow_untested_optimizer"),
        ({"bf16": {"enabled": True}, "bfloat16": {"enabled": True}}, "are two names of one block"),
        ({"checkpoint": {"load_universal": True}}, "checkpoint.load_universal: "),
    ],
)
def test_what_deepspeed_finds_late_or_not_at_all(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load(values)
    assert str(error.value).startswith("ds.json:")


def test_an_optimizer_block_gets_the_recipe_s_numbers_where_it_leaves_them_out() -> None:
    loaded = load({"optimizer": {"type": "AdamW", "params": {"eps": 1e-7, "lr": None}}}, "--learning_rate", "3e-4")
    params = loaded.deepspeed["optimizer"]["params"]
    assert params == {"lr": "auto", "betas": "auto", "weight_decay": "auto", "eps": 1e-7}
    [note] = loaded.notes
    assert "optimizer.params.lr = 0.0003" in note and "optimizer.params.betas = [0.9, 0.95]" in note
    assert "eps" not in note and loaded.config.argument("adam_epsilon") == 1e-7


@pytest.mark.parametrize(
    ("block", "params"),
    [
        ({"optimizer": {"type": "Lion"}}, {"lr": "auto", "betas": "auto", "weight_decay": "auto"}),
        ({"optimizer": {"type": "Muon", "params": {"lr": "auto"}}}, {"lr": "auto"}),
        ({"optimizer": {"type": "Muon"}}, {"muon_lr": 2e-5, "adam_lr": 2e-5}),
        ({"scheduler": {"type": "WarmupLR"}}, {"warmup_max_lr": "auto", "warmup_num_steps": "auto"}),
        ({"scheduler": {"type": "WarmupDecayLR", "params": {"warmup_max_lr": None}}}, {"warmup_max_lr": "auto"}),
        ({"scheduler": {"type": "WarmupCosineLR"}}, {"warmup_num_steps": "auto", "total_num_steps": "auto"}),
        ({"scheduler": {"type": "LRRangeTest"}}, {"lr_range_test_min_lr": 2e-5}),
        ({"scheduler": {"type": "OneCycle", "params": {"cycle_min_lr": 1e-6}}}, {"cycle_max_lr": 2e-5}),
    ],
)
def test_no_rate_is_left_to_deepspeed(block: dict[str, Any], params: dict[str, Any]) -> None:
    [name] = block
    found = load(block, "--learning_rate", "2e-5").deepspeed[name]["params"]
    assert params.items() <= found.items()


def test_zero_3_gathers_what_it_saves() -> None:
    loaded = load({"zero_optimization": {"stage": 3}})
    assert loaded.deepspeed["zero_optimization"] == {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}
    assert "stage3_gather_16bit_weights_on_model_save = True" in loaded.notes[0]
    other = {"stage": 3, "gather_16bit_weights_on_model_save": True}
    assert load({"zero_optimization": other}).deepspeed["zero_optimization"] == other


def test_a_precision_that_only_the_recipe_names_is_not_lost() -> None:
    assert load({"bf16": {"enabled": "auto"}}, "--precision", "16-mixed").deepspeed["fp16"] == {"enabled": "auto"}
    loaded = load({"bfloat16": {"enabled": True}}, "--learning_rate", "1")
    assert loaded.deepspeed["bf16"] == {"enabled": True} and "bfloat16" not in loaded.deepspeed
