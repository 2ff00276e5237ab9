from pathlib import Path

import pytest

from data_prep.errors import UserError
from training.config import dump_resolved, load_config


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--max_steps", "5", "--num_train_epochs", "2"],
            "training.max_steps (command line) and training.num_train_epochs (command line): both set the length",
        ),
        (["--bf16", "--fp16"], "training.bf16 (command line) and training.fp16 (command line): only one precision"),
        (
            ["model.path=x", "model.kind=minigpt"],
            "model.path (command line) and model.kind (command line): both choose the model",
        ),
        (["model.path=x", "model.config.hidden_size=3"], "model.path (command line) and model.config (command line)"),
        (["model.kind=minigpt", "model.config.model_type=qwen2"], "both choose the architecture"),
        (["--revision", "main"], "model.revision (command line): applies only to model.path, which is not set"),
        (
            ["--load_in_4bit", "model.path=x"],
            "adapter.load_in_4bit (command line): is true, but adapter.method is none",
        ),
        (["--dora", "model.path=x"], "adapter.dora (command line): is true, but adapter.method is none"),
        (["--method", "lora"], "adapter.method (command line): is lora, but model.path is not set"),
        (["--load_best_model_at_end", "--save_strategy", "epoch"], "set both strategies to the same value"),
        (
            ["--load_best_model_at_end", "--eval_strategy", "no", "--save_strategy", "no"],
            "set both strategies to the same value",
        ),
        (
            ["--load_best_model_at_end", "--save_steps", "50", "--eval_steps", "40"],
            "save_steps = 50 must be a multiple of eval_steps = 40",
        ),
        (
            ["--validation_share", "0", "data.sources=[{path: a, split: train}]"],
            "no documents are held out for evaluation",
        ),
        (["--dataloader_persistent_workers", "--num_workers", "0"], "set data.num_workers above 0"),
        (["--dataloader_prefetch_factor", "2", "--dataloader_num_workers", "0"], "set data.num_workers above 0"),
        (
            ["--num_workers", "2", "--dataloader_num_workers", "3"],
            "data.num_workers (command line) and training.dataloader_num_workers (command line): both set",
        ),
        (["--group_by_length"], "packed rows all have the same length"),
        (["--max_tokens_per_batch", "4096"], "packed rows all have the same length"),
        (
            ["perf.micro_batch_size=auto", "--packing", "none", "--max_tokens_per_batch", "4096"],
            "perf.micro_batch_size (command line) and data.max_tokens_per_batch (command line): both set the size",
        ),
        (
            ["--streaming", "--num_train_epochs", "2"],
            "a stream has no known length, so epochs cannot set the length of the run",
        ),
        (
            ["--streaming", "--eval_strategy", "epoch"],
            "a stream has no known end of an epoch: set training.eval_strategy to steps",
        ),
        (["--streaming", "--packing", "none", "--group_by_length"], "group_by_length needs the lengths of all rows"),
        (["--learning_rate", "-1"], "training.learning_rate (command line): is -1: must not be below 0"),
        (["--max_grad_norm=-0.5"], "is -0.5: must not be below 0"),
        (["--remove_unused_columns"], "is true, but the collator needs every column"),
        (["training.gradient_checkpointing_kwargs={use_reentrant: true}"], "sets use_reentrant to true"),
        (
            ["--gradient_checkpointing", "perf.activation_checkpointing=every_2"],
            "perf.activation_checkpointing (command line) and training.gradient_checkpointing (command line): disagree "
            "(true means full): set the second to null",
        ),
        (["training.activation_checkpointing=true", "perf.activation_checkpointing=off"], "disagree (true means full)"),
        (["--gradient_checkpointing", "false", "perf.activation_checkpointing=auto"], "disagree (false means off)"),
        (
            ["perf.activation_checkpointing=every_1"],
            "'every_1' is none of off, auto, selective, every_4, every_2, full",
        ),
        (
            [
                "perf.activation_checkpointing=full",
                "--fsdp",
                "full_shard",
                "training.fsdp_config={activation_checkpointing: true}",
            ],
            "both checkpoint activations",
        ),
        (["--use_liger_kernel"], "not for MiniGPT"),
        (["--use_cpu", "--fp16"], "fp16 needs a GPU"),
    ],
)
def test_contradictions(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(argv)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_contradiction_names_the_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text("training:\n  max_steps: 5\n  num_train_epochs: 2\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"training\.max_steps \(r\.yaml:2\) and training\.num_train_epochs \(r\.yaml:3\)"
    ):
        load_config(["--config", "r.yaml"])


@pytest.mark.parametrize(
    "argv",
    [
        ["--max_steps", "-1", "--num_train_epochs", "2"],
        ["--bf16", "false", "--fp16"],
        ["--load_best_model_at_end", "--save_steps", "100", "--eval_steps", "50"],
        ["--load_best_model_at_end", "--save_strategy", "best"],
        ["--dataloader_persistent_workers"],
        ["--dataloader_persistent_workers", "--dataloader_num_workers", "2"],
        ["--packing", "none", "--group_by_length", "--max_tokens_per_batch", "4096"],
        ["--gradient_checkpointing", "perf.activation_checkpointing=full"],
        ["--gradient_checkpointing", "false", "perf.activation_checkpointing=off"],
        ["perf.activation_checkpointing=every_2", "training.activation_checkpointing_kwargs={early_stop: false}"],
        ["model.path=x", "--method", "lora", "--load_in_4bit"],
        ["--config", "minigpt_small", "model.path=x", "model.kind=null", "model.config=null"],
        ["--config", "qwen2.5_7b_sft_qlora", "--method", "none", "--load_in_4bit", "false"],
    ],
)
def test_what_goes_together(argv: list[str]) -> None:
    load_config(argv)


@pytest.mark.parametrize(
    ("argv", "mode"),
    [
        ([], "off"),
        (["--gradient_checkpointing"], "full"),
        (["--activation_checkpointing", "true"], "full"),
        (["--config", "low_memory"], "auto"),
        (["--config", "qwen2.5_0.5b_sft_full"], "full"),
        (["--config", "qwen2.5_0.5b_sft_full", "perf.activation_checkpointing=selective"], "selective"),
        (["--config", "qwen2.5_0.5b_sft_full", "perf.activation_checkpointing=off"], "off"),
        (["--config", "low_memory", "--gradient_checkpointing"], "full"),
        (["--config", "low_memory", "perf.activation_checkpointing=off"], "off"),
        (["--config", "qwen2.5_0.5b_sft_full", "--gradient_checkpointing", "false"], "off"),
    ],
)
def test_the_arguments_of_transformers_are_modes_of_ours(argv: list[str], mode: str, tmp_path: Path) -> None:
    loaded = load_config(argv)
    assert loaded.config.perf.activation_checkpointing == mode
    (tmp_path / "again.yaml").write_text(dump_resolved(loaded), encoding="utf-8")
    assert load_config(["--config", str(tmp_path / "again.yaml")]).config.perf.activation_checkpointing == mode
