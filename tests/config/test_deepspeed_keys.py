import json

import deepspeed
import pytest

from training.config.deepspeed_json import KEYS_FILE, key_table
from training.config.deepspeed_keys import build_table


def test_table_is_current() -> None:
    """After an upgrade of DeepSpeed: python -m training.config.deepspeed_keys, and read the difference."""
    table = json.loads(KEYS_FILE.read_text(encoding="utf-8"))
    if table["deepspeed"] != deepspeed.__version__:
        pytest.skip(f"table is of deepspeed {table['deepspeed']}, installed is {deepspeed.__version__}")
    assert build_table() == table


@pytest.mark.parametrize(
    "dotted",
    [
        "train_batch_size", "zero_optimization.stage", "zero_optimization.stage3_gather_16bit_weights_on_model_save",
        "zero_optimization.offload_optimizer.pin_memory", "zero_optimization.offload_param.nvme_path", "bf16.enabled",
        "fp16.initial_scale_power", "activation_checkpointing.cpu_checkpointing", "comms_logger.prof_ops",
        "flops_profiler.detailed", "aio.queue_depth", "wandb.project", "tensorboard.job_name",
        "csv_monitor.output_path",
        "timers.throughput.synchronized", "data_types.grad_accum_dtype", "checkpoint.parallel_write.pipeline_stage",
        "zero_force_ds_cpu_optimizer", "optimizer.params", "scheduler.type", "wall_clock_breakdown",
    ],
)  # fmt: skip
def test_keys_of_the_documentation(dotted: str) -> None:
    level = key_table()["keys"]
    for key in dotted.split("."):
        assert key in level
        level = level[key]


def test_removed_blocks_have_a_reason() -> None:
    assert "removed" in key_table()["removed"]["compression_training"]
    assert "compression_training" not in key_table()["keys"]
