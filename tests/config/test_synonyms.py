"""Names of other programs: each is a key of ours or refused with the right reason, on the command line and in YAML."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from data_prep.recipe import Layer, Synonym
from data_prep.recipe.yaml_file import parse_value
from training.config import LoadedConfig, load_config
from training.config.synonyms import NAMES, REFUSED_FLAGS, SYNONYMS

LORA = ["--model.path", "org/model", "--adapter.method", "lora"]
# Names, what is typed after them, what the recipe then holds. Names that share a row mean one thing.
TAKEN: list[tuple[str, str, dict[str, Any]]] = [
    ("seed random_seed seed_everything", "7", {"training.seed": 7, "data.seed": 7, "tokenizer.seed": 0}),
    ("data_seed", "7", {"training.seed": None, "data.seed": 7}),
    ("lr max_lr base_lr", "3e-4", {"training.learning_rate": 3e-4}),
    (
        "epochs num_epochs max_epochs n_epochs train_epochs num_train_epoch",
        "3",
        {"training.num_train_epochs": 3, "training.max_steps": None},
    ),
    (
        "max_iters num_steps total_steps train_steps num_train_steps max_train_steps max_iterations",
        "9",
        {"training.max_steps": 9},
    ),
    (
        "batch_size per_device_batch_size per_gpu_train_batch_size device_batch_size per_gpu_batch_size "
        "micro_batch_size bs",
        "3",
        {"training.per_device_train_batch_size": 3, "perf.micro_batch_size": "recipe"},
    ),
    ("micro_batch_size", "auto", {"perf.micro_batch_size": "auto"}),
    (
        "eval_batch_size per_gpu_eval_batch_size val_batch_size valid_batch_size",
        "3",
        {"training.per_device_eval_batch_size": 3, "training.per_device_train_batch_size": 4},
    ),
    (
        "grad_accum_steps grad_accumulation_steps gradient_accumulation gradient_accumulation_iters "
        "accumulate_grad_batches accumulation_steps grad_accum grad_acc gas",
        "4",
        {"training.gradient_accumulation_steps": 4},
    ),
    (
        "grad_clip clip_grad clip_grad_norm gradient_clipping gradient_clip_val max_norm",
        "0.5",
        {"training.max_grad_norm": 0.5},
    ),
    ("wd", "0.2", {"training.weight_decay": 0.2}),
    ("beta1", "0.8", {"training.adam_beta1": 0.8}),
    ("beta2", "0.98", {"training.adam_beta2": 0.98}),
    ("adam_eps eps", "1e-6", {"training.adam_epsilon": 1e-6}),
    ("warmup_iters num_warmup_steps", "20", {"training.warmup_steps": 20}),
    ("warmup_ratio", "0.03", {"training.warmup_steps": 0.03}),
    ("lr_scheduler scheduler scheduler_type lr_schedule", "linear", {"training.lr_scheduler_type": "linear"}),
    ("optimizer optimizer_type", "adamw_torch", {"training.optim": "adamw_torch"}),
    ("evaluation_strategy", "epoch", {"training.eval_strategy": "epoch"}),
    ("eval_interval eval_every val_check_interval", "25", {"training.eval_steps": 25}),
    ("save_interval save_every save_freq checkpoint_every", "25", {"training.save_steps": 25}),
    ("no_cuda cpu", "true", {"training.use_cpu": True}),
    ("device", "cpu", {"training.use_cpu": True}),
    ("device", "cuda", {"training.use_cpu": False}),
    ("out_dir save_dir output output_path default_root_dir", "o", {"training.output_dir": "o"}),
    (
        "name wandb_name wandb_run_name exp_name experiment_name",
        "first",
        {"training.run_name": "first", "training.output_dir": "runs/default"},
    ),
    ("wandb_project", "mine", {"training.project": "mine"}),
    ("group", "ablation", {"monitor.wandb_group": "ablation"}),
    ("report_to", "[wandb, tensorboard]", {"training.report_to": ["wandb", "tensorboard"]}),
    ("wandb_entity", "team", {"monitor.wandb_entity": "team"}),
    ("compile_model enable_compile", "true", {"perf.compile": "blocks"}),
    ("use_gradient_checkpointing enable_gradient_checkpointing", "true", {"training.gradient_checkpointing": True}),
    (
        "activation_checkpointing activation_checkpoint ac_mode recompute_granularity",
        "selective",
        {"perf.activation_checkpointing": "selective"},
    ),
    ("activation_checkpointing", "true", {"training.activation_checkpointing": True}),
    ("activation_checkpointing", "every_8", {"perf.activation_checkpointing": "every_8"}),
    ("ac_mode", "none", {"perf.activation_checkpointing": "off"}),
    ("pin_memory", "false", {"training.dataloader_pin_memory": False}),
    ("label_smoothing", "0.1", {"training.label_smoothing_factor": 0.1}),
    ("neftune_alpha noise_alpha", "5.0", {"training.neftune_noise_alpha": 5.0}),
    ("precision mixed_precision", "16-mixed", {"training.fp16": True, "training.bf16": False}),
    ("precision mixed_precision", "bf16", {"training.bf16": True}),
    ("precision", "32", {"training.bf16": False}),
    ("mixed_precision", "no", {"training.bf16": False}),
    ("fp32", "true", {"training.bf16": False}),
    ("wandb use_wandb wandb_log", "true", {"training.report_to": "wandb"}),
    ("wandb use_wandb wandb_log", "false", {"training.report_to": "none"}),
    ("tensorboard use_tensorboard", "true", {"training.report_to": "tensorboard"}),
    ("logging_steps log_interval log_every_n_steps log_steps", "7", {"monitor.train_every": 7}),
    ("model_type", "qwen2", {"model.config.model_type": "qwen2"}),
    ("n_layer n_layers num_layers num_hidden_layers", "3", {"model.config.num_hidden_layers": 3}),
    ("n_head n_heads num_heads num_attention_heads", "4", {"model.config.num_attention_heads": 4}),
    ("n_embd d_model hidden_size dim", "64", {"model.config.hidden_size": 64}),
    (
        "model model_name_or_path model_name model_id model_path base_model pretrained_model "
        "pretrained_model_name_or_path",
        "org/m",
        {"model.path": "org/m", "tokenizer.path": "org/m"},
    ),
    ("torch_dtype model_dtype", "bfloat16", {"model.dtype": "bfloat16"}),
    ("attn_impl attention_implementation", "sdpa", {"model.attn_implementation": "sdpa"}),
    (
        "flash_attn flash_attention use_flash_attention use_flash_attention_2 use_flash_attn",
        "true",
        {"model.attn_implementation": "flash_attention_2"},
    ),
    ("flash_attn", "fa2", {"model.attn_implementation": "flash_attention_2"}),
    ("flash_attn", "disabled", {"model.attn_implementation": "eager"}),
    ("flash_attention", "false", {"model.attn_implementation": "sdpa"}),
    (
        "tokenizer tokenizer_name tokenizer_name_or_path tokenizer_path tokenizer_dir tokenizer_id",
        "org/t",
        {"tokenizer.path": "org/t"},
    ),
    ("tokenizer_vocab_size", "500", {"tokenizer.vocab_size": 500}),
    (
        "dataset datasets dataset_name dataset_path dataset_name_or_path dataset_id data data_file data_files "
        "data_path train_data train_dataset train_file train_files training_file",
        "org/set",
        {"data.sources.0.path": "hf:org/set", "data.sources.1": None},
    ),
    ("train_file dataset", "my/chats.jsonl", {"data.sources.0.path": "my/chats.jsonl"}),
    (
        "validation_file valid_file val_file eval_file eval_data eval_dataset eval_data_path",
        "held.jsonl",
        {"data.sources.1.path": "held.jsonl", "data.sources.1.split": "validation", "data.validation_share": 0},
    ),
    ("val_set_size val_size test_size eval_ratio split_dataset_ratio", "0.1", {"data.validation_share": 0.1}),
    ("validation_split_percentage", "5", {"data.validation_share": 0.05}),
    ("max_data_size max_samples max_train_samples num_samples", "9", {"data.sources.0.max_documents": 9}),
    ("dataset_split dataset_train_split train_split", "train_sft", {"data.sources.0.hf_split": "train_sft"}),
    (
        "dataset_text_field text_field text_column text_column_name text_key",
        "body",
        {"data.sources.0.text_key": "body"},
    ),
    (
        "block_size context_length ctx_len cutoff_len max_length max_len max_seq_len max_seq_length "
        "max_sequence_length model_max_length sequence_len sequence_length seqlen seq_length",
        "64",
        {"data.seq_len": 64},
    ),
    ("packing sample_packing neat_packing use_packing", "true", {"data.packing": "best_fit"}),
    ("packing sample_packing neat_packing use_packing", "false", {"data.packing": "none"}),
    ("packing", "wrapped", {"data.packing": "wrapped"}),
    ("use_dynamic_padding", "true", {"data.packing": "none"}),
    (
        "assistant_only_loss completion_only_loss train_on_completions_only train_on_responses_only",
        "false",
        {"data.train_on": "all"},
    ),
    ("train_on_inputs train_on_input train_on_prompt", "true", {"data.train_on": "all"}),
    ("train_on_inputs", "false", {"data.train_on": "assistant"}),
    ("mask_history", "true", {"data.train_on": "last_assistant"}),
    ("chat_template_path", "my.jinja", {"data.chat_template": "my.jinja"}),
    ("dataset_prepared_path", "s", {"data.store_dir": "s"}),
    (
        "preprocessing_num_workers dataset_num_proc dataset_processes num_preprocess_workers",
        "2",
        {"data.num_proc": 2},
    ),
    ("dataloader_workers", "2", {"data.num_workers": 2}),
    ("plot_loss", "true", {"monitor.plot_every": 200}),
    ("plot_loss", "false", {"monitor.plot_every": 0}),
    ("disable_monitoring disable_metrics_monitoring", "true", {"perf.enabled": False}),
    ("fast_detection", "true", {"perf.log_every": 100}),
    ("use_full_data", "true", {"data.sources.0.max_documents": None}),
]
# The same, of an adapter: over pretrained weights.
TAKEN_BY_ADAPTERS: list[tuple[str, str, dict[str, Any]]] = [
    ("lora_r lora_rank", "8", {"adapter.r": 8}),
    ("lora_alpha", "64", {"adapter.alpha": 64}),
    ("lora_dropout", "0.2", {"adapter.dropout": 0.2}),
    ("target_modules", r".*\.[qv]_proj", {"adapter.target_modules": r".*\.[qv]_proj"}),
    (
        "lora_target lora_target_modules target_modules",
        "q_proj,v_proj",
        {"adapter.target_modules": ["q_proj", "v_proj"]},
    ),
    ("lora_target", "all", {"adapter.target_modules": "all-linear"}),
    ("lora_target_linear", "true", {"adapter.target_modules": "all-linear"}),
    ("use_peft use_lora lora", "true", {"adapter.method": "lora", "adapter.load_in_4bit": False}),
    ("use_peft use_lora", "false", {"adapter.method": "none"}),
    ("qlora", "true", {"adapter.method": "lora", "adapter.load_in_4bit": True}),
    ("finetuning_type adapter peft_type train_type tuner_type", "lora", {"adapter.method": "lora"}),
    ("finetuning_type", "full", {"adapter.method": "none"}),
    ("adapter", "qlora", {"adapter.load_in_4bit": True}),
    ("quantization_bit", "4", {"adapter.load_in_4bit": True}),
    ("use_dora lora_use_dora peft_use_dora", "true", {"adapter.dora": True}),
    ("use_rslora lora_use_rslora peft_use_rslora", "true", {"adapter.rslora": True}),
    (
        "use_bnb_nested_quant bnb_4bit_use_double_quant double_quantization",
        "false",
        {"adapter.double_quant": False},
    ),
    ("model_revision", "main", {"model.revision": "main"}),
    ("enable_liger_kernel use_liger liger_kernel liger", "true", {"training.use_liger_kernel": True}),
]
ALL_TAKEN = [(name, *row) for names, *row in TAKEN for name in names.split()]
ALL_ADAPTERS = [(name, *row) for names, *row in TAKEN_BY_ADAPTERS for name in names.split()]
# What each refusal must say, where the reason that stands in the table is not the whole of what is asked of it.
REFUSED = {
    "train_batch_size": "--per_device_train_batch_size",
    "global_batch_size": "--gradient_accumulation_steps",
    "dropout": "adapter.dropout",
    "template": "data.chat_template",
    "stage": "the kind of the records",
    "overwrite_output_dir": "--resume auto",
    "logging_dir": "training.output_dir",
    "do_train": "always trains",
    "do_eval": "training.eval_strategy",
    "fp16_opt_level": "training.bf16",
    "eos_token": "tokenizer.special_tokens",
    "load_in_8bit": "--load_in_4bit",
    "bnb_4bit_quant_type": "NF4",
    "min_lr": "cosine_with_min_lr",
    "init_from": "--model.path",
    "eval_iters": "data.validation_share",
    "devices": "--nproc_per_node",
    "strategy": "--deepspeed zero2_bf16",
    "accelerator": "torchrun",
    "max_new_tokens": "training.generate",
    "pad_to_sequence_len": "data.packing",
    "use_auth_token": "HF_TOKEN",
    "dataset_config_name": "hf:NAME:CONFIG",
}


def value(loaded: LoadedConfig, dotted: str) -> Any:
    return Layer(loaded.config.model_dump()).get(tuple(int(p) if p.isdigit() else p for p in dotted.split(".")))


def check(loaded: LoadedConfig, holds: dict[str, Any]) -> None:
    assert {key: value(loaded, key) for key in holds} == holds


@pytest.mark.parametrize(("name", "typed", "holds"), ALL_TAKEN)
def test_names_on_the_command_line(name: str, typed: str, holds: dict[str, Any]) -> None:
    check(load_config([f"--{name}", typed]), holds)
    check(load_config([f"--{name.replace('_', '-')}={typed}"]), holds)


@pytest.mark.parametrize(("name", "typed", "holds"), ALL_ADAPTERS)
def test_names_of_adapters(name: str, typed: str, holds: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec  # liger_kernel is an extra of GPUs, and refused where it is not installed
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find("torch" if name == "liger_kernel" else name))
    check(load_config([*LORA, f"--{name}", typed]), holds)


@pytest.mark.parametrize(("name", "typed", "holds"), ALL_TAKEN)
def test_names_in_a_section_of_a_recipe(tmp_path: Path, name: str, typed: str, holds: dict[str, Any]) -> None:
    sources = "" if "data.sources.0.path" in holds else "data: {sources: [{path: embedded, max_documents: 50}]}\n"
    section = "data: {sources: [{path: embedded}], " if sources and "sources" in str(holds) else "monitor: {"
    (tmp_path / "r.yaml").write_text(f"{section}{name}: {typed}}}\n" + ("" if "data" in section else sources))
    loaded = load_config(["--config", str(tmp_path / "r.yaml")])
    expected = {key: f"runs/{'r'}" if item == "runs/default" else item for key, item in holds.items()}
    check(loaded, expected)
    for key in (key for key in holds if "*" not in key and value(loaded, key) == parse_value(typed)):
        assert str(loaded.origins[tuple(int(p) if p.isdigit() else p for p in key.split("."))]).endswith("r.yaml:1")


def test_every_name_stands_in_a_table() -> None:
    assert set(SYNONYMS) <= {row[0] for row in [*ALL_TAKEN, *ALL_ADAPTERS]}
    assert not set(SYNONYMS) & set(REFUSED_FLAGS)
    assert all(isinstance(reason, str) and len(reason) > 12 for reason in REFUSED_FLAGS.values())


def test_no_name_hides_a_key_of_ours_but_by_a_value_that_the_key_does_not_take() -> None:
    from training.config.loading import sections

    keys = {key for model in sections().values() for key in model.model_fields}
    hidden = {name for name in keys & set(SYNONYMS) if not isinstance(SYNONYMS[name], Synonym)}
    assert hidden == {"seed"}  # of three sections, none of which it could mean alone
    assert keys & set(REFUSED_FLAGS) == {"dropout"}


@pytest.mark.parametrize("name", sorted({*REFUSED_FLAGS, *REFUSED}))
def test_what_is_not_there_says_so(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as error:
        load_config([f"--{name}", "1"])
    assert REFUSED.get(name) or REFUSED_FLAGS[name] in str(error.value)
    assert REFUSED.get(name, "") in str(error.value)
    (tmp_path / "r.yaml").write_text(f"training:\n  {name}: 1\n")
    with pytest.raises(UserError, match=r"r\.yaml:2: training\.") as error:
        load_config(["--config", str(tmp_path / "r.yaml")])
    assert REFUSED.get(name, "") in str(error.value)


# Nearest key by sound, but another thing: no hint at all.
@pytest.mark.parametrize(
    "name",
    [
        "l",
        "lrs",
        "foo",
        "project_name",
        "train_size",
        "wandb_tag",
        "loss",
        "kinds_of_data",
        "batch",
        "gpu",
        "n",
        "no_lunch",
    ],
)
def test_a_name_that_is_no_misspelling_gets_no_suggestion(name: str) -> None:
    with pytest.raises(UserError) as error:
        load_config([f"--{name}", "1"])
    assert "did you mean" not in str(error.value) and "--help lists" in str(error.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("learning_rte", "learning_rate"),
        ("lora_rnak", "lora_rank"),
        ("max_step", "max_steps"),
        ("seqlen_", "seqlen"),
        ("weigth_decay", "weight_decay"),
        ("BF16", "bf16"),
        ("gradient_acumulation_step", "gradient_accumulation_steps"),
    ],
)
def test_a_misspelling_does(name: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"did you mean --{meant}\\?"):
        load_config([f"--{name}", "1"])


@pytest.mark.parametrize("typed", [["wandb", "tensorboard"], ["wandb,tensorboard"], ["[wandb, tensorboard]"]])
def test_a_list_is_taken_as_people_write_one(typed: list[str]) -> None:
    assert load_config(["--report_to", *typed, "--lr", "1e-4"]).config.training["report_to"] == ["wandb", "tensorboard"]


def test_a_switch_is_turned_off_by_its_value() -> None:
    with pytest.raises(UserError, match="unknown flag --no_bf16: write --bf16 false"):
        load_config(["--no_bf16"])


def test_train_and_validation_file_in_any_order() -> None:
    one = load_config(["--train_file", "a.jsonl", "--validation_file", "b.jsonl", "--max_samples", "5"]).config.data
    other = load_config(["--max_samples", "5", "--validation_file", "b.jsonl", "--train_file", "a.jsonl"]).config.data
    assert one == other
    assert [(source.path, source.split, source.max_documents) for source in one.sources] == [
        ("a.jsonl", "auto", 5),
        ("b.jsonl", "validation", 5),
    ]


def test_limit_on_documents_keeps_the_origin_of_the_rest() -> None:
    origins = load_config(["--config", "debug", "--max_data_size", "9"]).origins
    assert str(origins["data", "sources", 0, "max_documents"]) == "command line"
    assert "debug.yaml" in str(origins["data", "sources", 0, "path"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--precision", "8"], "--precision = '8': must be one of 16-mixed, bf16-mixed, 32"),
        (["--max_data_size", "10GB"], "--max_data_size = '10GB': must be a number of documents"),
        (["--data_files"], "--data_files needs at least one value"),
        (["--pin_memory=maybe"], "--pin_memory = 'maybe': must be true or false"),
        (["--dataset", "alpaca_en_demo"], "--dataset = 'alpaca_en_demo': is not a file, directory or glob here"),
        (["--val_size", "500"], "--val_size = '500': must be a share below 1"),
        (["--val_check_interval", "0.25"], "--val_check_interval = '0.25': must be a whole number of steps"),
        (["--quantization_bit", "8"], "--quantization_bit = '8': must be 4"),
        (["--finetuning_type", "freeze"], "--finetuning_type = 'freeze': must be one of lora, qlora, dora, full, none"),
        (["--lr", "fast"], "command line: training.learning_rate = 'fast': must be a number"),
        (["--lora_r", "8", "--model", "org/m"], "adapter.r (command line): is set, but adapter.method is none"),
        (
            ["--resume_from_checkpoint", "nowhere"],
            "--resume = 'nowhere': no such directory: give auto, never or the path of a checkpoint",
        ),
    ],
)
def test_bad_values_of_synonyms(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(argv)
    assert message in str(error.value)


def test_resume_as_transformers_spells_it(tmp_path: Path) -> None:
    assert load_config(["--resume_from_checkpoint", "True"]).resume == "auto"
    assert load_config(["--resume_from_checkpoint", str(tmp_path)]).resume == str(tmp_path)


AXOLOTL = """\
base_model: org/model
datasets:
  - path: org/set
    type: alpaca
sequence_len: 2048
sample_packing: true
adapter: qlora
lora_r: 16
micro_batch_size: 2
num_epochs: 3
learning_rate: 2e-4
pad_to_sequence_len: true
special_tokens: {pad_token: x}
my_key: 1
"""


def test_a_flat_file_of_another_program_is_told_where_its_keys_belong(tmp_path: Path) -> None:
    (tmp_path / "axolotl.yaml").write_text(AXOLOTL)
    with pytest.raises(UserError) as error:
        load_config(["--config", str(tmp_path / "axolotl.yaml")])
    message = str(error.value)
    assert "\n" not in message
    for part in (
        "axolotl.yaml: this is a file of axolotl: keys at the top level, which belong in sections: ",
        "base_model -> model.path",
        "data.sources: [{path: NAME}]",
        "sequence_len -> data.seq_len",
        "sample_packing -> data.packing: 'best_fit'",
        "adapter -> adapter.method: 'lora' and adapter.load_in_4bit: true",
        "lora_r -> adapter.r",
        "micro_batch_size -> training.per_device_train_batch_size: 2",
        "num_epochs -> training.num_train_epochs",
        "learning_rate -> training.learning_rate",
        "pad_to_sequence_len: packed rows are full",
        "unknown here: my_key",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("model_name_or_path: m\nstage: sft\nfinetuning_type: lora\ncutoff_len: 64\n", "a file of LLaMA-Factory"),
        ("model_name_or_path: m\nper_device_train_batch_size: 2\noutput_dir: o\n", "Hugging Face or TRL arguments"),
        ('{"model_name_or_path": "m", "output_dir": "o"}', "Hugging Face or TRL arguments"),
        ("learning_rate: 1e-4\n", "a flat file"),
        ("model: org/m\ntraining: {max_steps: 3}\n", "model -> model.path"),
        ("model: {path: org/m}\nadapter: lora\n", "adapter -> adapter.method: 'lora'"),
    ],
)
def test_flat_files(tmp_path: Path, text: str, program: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=program):
        load_config(["--config", str(tmp_path / "r.yaml")])


def test_two_names_for_one_key_in_one_file(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("training:\n  learning_rate: 1e-4\n  lr: 2e-4\n")
    with pytest.raises(UserError, match=r"r\.yaml:3: training\.lr and training\.learning_rate are both set"):
        load_config(["--config", str(tmp_path / "r.yaml")])


def test_names_are_one_object_for_both_ways_in() -> None:
    assert NAMES.synonyms is SYNONYMS and NAMES.refused is REFUSED_FLAGS
