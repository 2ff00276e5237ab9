import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from training.config import check_deepspeed, load_config
from training.config.deepspeed_json import DEEPSPEED_DIR, read_deepspeed

SHIPPED = sorted(file.stem for file in DEEPSPEED_DIR.glob("*.json"))


def load(text: str | dict[str, Any], *argv: str, world_size: int = 1) -> Any:
    Path("ds.json").write_text(text if isinstance(text, str) else json.dumps(text, indent=1), encoding="utf-8")
    return load_config(["--deepspeed", "ds.json", *argv], world_size)


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{\n "zero_optimisation": {}\n}',
            "ds.json:2: unknown DeepSpeed key zero_optimisation = {}: did you mean zero_optimization?",
        ),
        (
            '{"zero_optimization": {\n"stage": 2,\n"offload_optimizer": {\n"devise": "cpu"}}}',
            'ds.json:4: unknown DeepSpeed key zero_optimization.offload_optimizer.devise = "cpu": did you mean '
            "zero_optimization.offload_optimizer.device?",
        ),
        (
            '{"zero_optimization": {"stage3_prefetch_bucket": 1}}',
            "did you mean zero_optimization.stage3_prefetch_bucket_size?",
        ),
        ('{"bf16": {"enable": true}}', "did you mean bf16.enabled?"),
        ('{"timers": {"throughput": {"enbled": false}}}', "did you mean timers.throughput.enabled?"),
        (
            '{"activation_checkpointing": {"partition_activation": true}}',
            "did you mean activation_checkpointing.partition_activations?",
        ),
        ('{"optimizer": {"typ": "AdamW"}}', "did you mean optimizer.type?"),
        ('{"data_types": {"grad_acum_dtype": "fp32"}}', "did you mean data_types.grad_accum_dtype?"),
        ('{"aio": {"blocksize": 1}}', "did you mean aio.block_size?"),
        ('{\n"elasticity": {}}', "ds.json:2: elasticity: Elastic training has been removed"),
        ('{"zero_optimization": 2}', "ds.json:1: zero_optimization = 2: must be an object with keys"),
        (
            '{\n"gradient_clipping": 1,\n"gradient_clipping": 2}',
            "ds.json:3: duplicate key gradient_clipping: first written in line 2",
        ),
        ('{\n"gradient_clipping": 1\n"x": 2}', "ds.json:3: not valid JSON"),
        ('{\n"gradient_clipping": 1,\n}', ": not valid JSON"),  # Python 3.13 names the line of the comma
        ('{\n\t"gradient_clipping":\t1,\n\t"x": 1}', "ds.json:3: unknown DeepSpeed key x = 1"),
        ("[1]", "ds.json:1: expected"),
    ],
)
def test_bad_json(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("block", "argv", "message"),
    [
        (
            {"train_micro_batch_size_per_gpu": 8},
            ["--batch_size", "2"],
            "ds.json:2: train_micro_batch_size_per_gpu = 8 disagrees with training.per_device_train_batch_size "
            '= 2 (command line): make them equal or write "auto" in the JSON',
        ),
        (
            {"gradient_accumulation_steps": 4},
            ["--gradient_accumulation_steps", "2"],
            "ds.json:2: gradient_accumulation_steps = 4 disagrees",
        ),
        ({"gradient_clipping": 0.5}, ["--max_grad_norm", "1"], "training.max_grad_norm = 1"),
        ({"bf16": {"enabled": True}}, ["--fp16"], "ds.json:3: bf16.enabled = true disagrees with training.bf16"),
        ({"bf16": {"enabled": True}}, ["--precision", "32"], "training.bf16 = false (command line)"),
        ({"bf16": {"enabled": False}}, ["--bf16"], "bf16.enabled = false disagrees with training.bf16 = true"),
        ({"fp16": {"enabled": True}}, ["--bf16"], "fp16.enabled = true disagrees"),
        (
            {"optimizer": {"type": "AdamW"}},
            ["--optim", "adamw_torch"],
            "ds.json:2: optimizer is set here and as training.optim = 'adamw_torch' (command line): keep one",
        ),
        (
            {"scheduler": {"type": "WarmupLR"}},
            ["--lr_scheduler_type", "cosine"],
            "scheduler is set here and as training.lr_scheduler_type",
        ),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": 0.1}}},
            ["--learning_rate", "0.2"],
            "ds.json:5: optimizer.params.lr = 0.1 disagrees",
        ),
        (
            {"optimizer": {"type": "AdamW", "params": {"betas": [0.9, 0.9]}}},
            ["--adam_beta2", "0.99"],
            "optimizer.params.betas.1 = 0.9 disagrees with training.adam_beta2 = 0.99",
        ),
        (
            {"train_batch_size": 12},
            ["--batch_size", "2"],
            "ds.json:2: train_batch_size = 12 disagrees with training.per_device_train_batch_size x "
            "gradient_accumulation_steps x ranks = 2 x 1 x 1",
        ),
        ({}, ["--fsdp", "full_shard"], "both shard the model"),
    ],
)
def test_json_that_disagrees(block: dict[str, Any], argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        load(block, *argv)
    assert message in str(error.value)


def test_train_batch_size_depends_on_the_ranks() -> None:
    argv = ["--batch_size", "2", "--gradient_accumulation_steps", "3"]
    load({"train_batch_size": 12}, *argv, world_size=2)
    with pytest.raises(UserError, match="2 x 3 x 4"):
        load({"train_batch_size": 12}, *argv, world_size=4)


@pytest.mark.parametrize("key", ["train_micro_batch_size_per_gpu", "gradient_accumulation_steps"])
def test_an_automatic_micro_batch_wants_no_numbers(key: str) -> None:
    load({key: "auto"}, "perf.micro_batch_size=auto")
    with pytest.raises(UserError, match=rf"ds\.json:2: {key} = 1 fixes a size that perf\.micro_batch_size"):
        load({key: 1}, "perf.micro_batch_size=auto")


def test_world_size_of_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    Path("ds.json").write_text('{"train_batch_size": 6}', encoding="utf-8")
    load_config(["--deepspeed", "ds.json", "--batch_size", "2"])


def test_numbers_of_the_json_win_over_defaults() -> None:
    loaded = load(
        {
            "train_micro_batch_size_per_gpu": 8,
            "fp16": {"enabled": True},
            "optimizer": {"type": "Adam", "params": {"lr": 0.5}},
        }
    )
    training = loaded.config.training
    assert (training["per_device_train_batch_size"], training["fp16"], training["learning_rate"]) == (8, True, 0.5)
    assert "bf16" not in training
    assert "optim" not in training
    assert str(loaded.origins[("training", "learning_rate")]) == "ds.json:9"


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_json(name: str) -> None:
    values = read_deepspeed(name)[0].values
    zero = values["zero_optimization"]
    assert name.startswith(f"zero{zero['stage']}_")
    precision = name.split("_")[1]
    assert values[precision]["enabled"] is True
    assert ("offload_optimizer" in zero) == ("offload" in name)
    assert ("offload_param" in zero) == name.endswith("_offload")
    assert values["timers"]["throughput"]["enabled"] is False
    assert {"optimizer", "scheduler"}.isdisjoint(values)
    for key in (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
    ):
        assert values[key] == "auto"
    if zero["stage"] == 3:
        assert zero["stage3_gather_16bit_weights_on_model_save"] is True
    assert f"`{name}`" in (DEEPSPEED_DIR / "README.md").read_text(encoding="utf-8")
    assert load_config(["--deepspeed", name]).config.training[precision] is True


def test_check_deepspeed_by_itself() -> None:
    config = load_config(["--batch_size", "2"]).config
    check_deepspeed({"train_batch_size": 4}, config, 2)
    check_deepspeed({"train_batch_size": "auto"}, config, 3)
    with pytest.raises(UserError, match="train_batch_size = 4 disagrees .* 2 x 1 x 3"):
        check_deepspeed({"train_batch_size": 4}, config, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"zero_optimization":\n {"stage": 5}}', "zero_optimization.stage"),
        ('{"zero_optimization":\n {"stage": "2"}}', "must be one of 0, 1, 2, 3"),
        ('{"zero_optimization":\n {"stage": true}}', "must be one of 0, 1, 2, 3"),
        ('{"zero_optimization":\n {"stage": 2, "offload_optimizer": {"device": "gpu"}}}', '"none", "cpu", "nvme"'),
        ('{"bf16":\n {"enabled": "yes"}}', "bf16.enabled"),
        ('{"zero_optimization":\n {"reduce_bucket_size": "5e8"}}', 'reduce_bucket_size = "5e8": must be a number'),
        ('{\n"gradient_clipping": true}', "gradient_clipping = true: must be a number"),
        ('{\n"bf16": true}', "bf16 = true: must be an object with keys"),
        ('{\n"wall_clock_breakdown": "yes"}', 'wall_clock_breakdown = "yes": must be true or false'),
        ('{"checkpoint":\n {"tag_validation": 1}}', "checkpoint.tag_validation = 1: must be a string"),
        (
            '{"optimizer":\n {"type": "Adamm"}}',
            'optimizer.type = "Adamm": DeepSpeed has no optimizer of this name: did you mean',
        ),
        (
            '{"scheduler":\n {"type": "warmuplr"}}',
            'scheduler.type = "warmuplr": DeepSpeed has no scheduler of this name',
        ),
        ('{\n"optimizer": {"params": {"lr": 1}}}', "optimizer has no type: set optimizer.type, or leave the block out"),
        (
            '{"optimizer": {"type": "AdamW", "params":\n {"wheight_decay": 0}}}',
            "optimizer.params.wheight_decay: AdamW has no such parameter: did you mean weight_decay?",
        ),
        (
            '{"scheduler": {"type": "WarmupLR", "params":\n {"total_num_steps": 9}}}',
            "scheduler.params.total_num_steps: WarmupLR has no such parameter",
        ),
    ],
)
def test_values_that_deepspeed_would_refuse_late(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(["--deepspeed", str(path)])
    assert message in str(error.value) and "bad.json:2" in str(error.value)


def test_intervals_and_batches_are_above_zero():
    for flag in ("--eval_steps", "--save_steps", "--batch_size"):
        with pytest.raises(UserError, match="must be above 0"):
            load_config([flag, "-1"])
