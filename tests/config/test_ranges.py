from pathlib import Path

import pytest

from data_prep.errors import UserError
from training.config import load_config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("learning_rate", ".nan", "must be a finite number"),
        ("learning_rate", ".inf", "must be a finite number"),
        ("learning_rate", "-1e-4", "must not be below 0"),
        ("weight_decay", "-.inf", "must be a finite number"),
        ("max_grad_norm", ".nan", "must be a finite number"),
        ("num_train_epochs", ".nan", "must be a finite number"),
        ("num_train_epochs", "0", "must be above 0"),
        ("max_steps", "0", "must be above 0, or -1"),
        ("max_steps", "1000000000000000000000000000000", "must be at most"),
        ("per_device_train_batch_size", "0", "must be above 0"),
        ("per_device_train_batch_size", "1000000000000", "must be at most 1,000,000"),
        ("gradient_accumulation_steps", "-2", "must be above 0"),
        ("eval_steps", "0", "must be above 0"),
        ("seed", "-1", "must not be below 0"),
        ("seed", "10000000000", "must be at most 4,294,967,295"),
        ("adam_epsilon", "-1.0", "must not be below 0"),
        ("ddp_timeout", "0", "must be above 0"),
        ("log_level", "loud", "must be one of detail, debug"),
        ("dataloader_multiprocessing_context", "foo", "must be one of fork, spawn"),
        ("gradient_checkpointing_kwargs", "{foo: 1}", "has the unknown key 'foo'"),
    ],
)
def test_numbers_that_no_run_can_have(tmp_path: Path, key: str, value: str, message: str) -> None:
    steps = "" if key in ("max_steps", "num_train_epochs") else "max_steps: 3, "
    (tmp_path / "r.yaml").write_text(f"training: {{{steps}{key}: {value}}}\n")
    with pytest.raises(UserError) as error:
        load_config(["--config", str(tmp_path / "r.yaml")])
    assert f"training.{key} (" in str(error.value) and "r.yaml:1" in str(error.value)
    assert message in str(error.value)


def test_numbers_at_the_edge_that_a_run_can_have() -> None:
    flags = ["--max_grad_norm", ".inf", "--weight_decay", "0", "--max_steps", "-1", "--epochs", "0.5", "--seed", "0"]
    assert load_config(flags).config.training["num_train_epochs"] == 0.5


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("data.seed=100000000000000000000", "data.seed"),
        ("perf.num_threads=99999", "less than or equal to 1024"),
        ("monitor.sample_prompt=", "at least 1 character"),
        ("training.output_dir=", "must name a directory"),
        ("data.store_dir=", "must name a directory"),
    ],
)
def test_other_sections(flag: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config([flag])


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    config = load_config(["--output_dir", "~/runs/a", "--store_dir", "~/stores"]).config
    assert (config.training["output_dir"], config.data.store_dir) == ("/home/somebody/runs/a", "/home/somebody/stores")
