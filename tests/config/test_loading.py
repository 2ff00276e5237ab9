import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import UserError
from data_prep.recipe import RECIPE_DIR
from training.config import dump_resolved, load_config

RECIPES = sorted(file.stem for file in RECIPE_DIR.glob("*.yaml"))
PROFILES = ["fast", "max_throughput", "low_memory", "debug"]


def write(directory: Path, text: str, name: str = "r.yaml") -> str:
    (directory / name).write_text(text, encoding="utf-8")
    return str(directory / name)


def test_torch_is_not_imported() -> None:
    code = (
        "import sys; from training.config import load_config\n"
        "load_config(['--config', 'qwen2.5_7b_sft_qlora', '--deepspeed', 'zero2_bf16'])\n"
        "print(sorted({'torch', 'transformers', 'deepspeed', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_empty_recipe_is_the_quickstart() -> None:
    empty, quickstart = load_config([]), load_config(["--config", "minigpt_quickstart"])
    assert empty.recipe == "default"
    assert empty.config.training["output_dir"] == "runs/default"
    assert quickstart.config.training["output_dir"] == "runs/minigpt_quickstart"
    assert empty.config.model == quickstart.config.model
    assert empty.config.model.kind == "minigpt"
    assert empty.config.data.sources[0].path == "embedded"
    assert {**quickstart.config.training, "output_dir": ""} == {**empty.config.training, "output_dir": ""}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("profile", [None, *PROFILES])
def test_every_recipe_loads_alone_and_under_each_profile(tmp_path: Path, name: str, profile: str | None) -> None:
    if profile is None:
        loaded = load_config(["--config", name])
        assert loaded.recipe == name
    else:
        loaded = load_config(["--config", write(tmp_path, f"extends: [{name}, {profile}]\n")])
        with_debug_data = profile == "debug" and name in PROFILES  # no recipe that names a model
        assert (
            loaded.config.data.sources
            == load_config(["--config", "debug" if with_debug_data else name]).config.data.sources
        )


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("extra", [[], ["--deepspeed", "zero2_fp16"], ["--data_files", "a b.txt", "--plot_loss"]])
def test_the_dump_loads_again_to_the_same_config(tmp_path: Path, name: str, extra: list[str]) -> None:
    loaded = load_config(["--config", name, *extra])
    again = load_config(["--config", write(tmp_path, dump_resolved(loaded), "config.yaml")])
    assert again.config == loaded.config
    assert again.deepspeed == loaded.deepspeed
    assert again.config.training["output_dir"] == f"runs/{name}"


@pytest.mark.parametrize("name", RECIPES)
def test_first_line_of_a_recipe_names_the_schema(name: str) -> None:
    first = (RECIPE_DIR / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=schema.json"


def test_origins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, '{\n "gradient_clipping": 0.5,\n "train_micro_batch_size_per_gpu": "auto"\n}\n', "ds.json")
    write(tmp_path, "training:\n  learning_rate: 1e-4\n")
    loaded = load_config(["--config", "r.yaml", "--deepspeed", "ds.json", "--batch_size", "2"])
    lines = {line.split(":")[0].strip(): line.split("  # ")[-1] for line in dump_resolved(loaded).splitlines()}
    assert lines["learning_rate"] == "r.yaml:2"
    assert lines["per_device_train_batch_size"] == "command line"
    assert lines["max_grad_norm"] == "ds.json:2"
    assert lines["weight_decay"] == "default"
    assert lines["deepspeed"] == "command line"
    assert loaded.config.training["max_grad_norm"] == 0.5
    assert loaded.deepspeed == {
        "gradient_clipping": 0.5,
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "zero_optimization": {"stage": 0},
    }


def test_later_word_on_length_and_precision_holds(tmp_path: Path) -> None:
    epochs = write(tmp_path, "training: {num_train_epochs: 2, fp16: true}\n")
    assert "max_steps" not in load_config(["--config", epochs]).config.training
    assert "bf16" not in load_config(["--config", epochs]).config.training
    steps = load_config(["--config", epochs, "--max_steps", "7", "--bf16"]).config.training
    assert (steps["max_steps"], steps["bf16"]) == (7, True)
    assert not {"num_train_epochs", "fp16"} & set(steps)


def test_model_brings_its_tokenizer_unless_one_is_named() -> None:
    assert load_config(["--model.path", "org/m"]).config.tokenizer.path == "org/m"
    assert load_config(["--model.path", "org/m", "tokenizer.path=other"]).config.tokenizer.path == "other"
    assert load_config(["--model.path", "org/m", "--vocab_size", "500"]).config.tokenizer.path is None


def test_bare_names_and_launcher_flags(tmp_path: Path) -> None:
    assert load_config(["--config", "medium", "--local_rank=0"]).recipe == "minigpt_medium"
    assert (
        load_config(["--deepspeed_config", "zero1_bf16"]).deepspeed_path
        == RECIPE_DIR.parent / "ds_configs/zero1_bf16.json"
    )
    assert load_config(["--local-rank", "1", "--resume", "auto"]).resume == "auto"
    assert load_config(["--resume", str(tmp_path)]).resume == str(tmp_path)
    assert load_config([]).resume == "never"


def test_a_recipe_may_name_its_deepspeed_json(tmp_path: Path) -> None:
    recipe = write(tmp_path, "deepspeed: zero3_bf16\n")
    path = load_config(["--config", recipe]).deepspeed_path
    assert path is not None and path.stem == "zero3_bf16"
    assert load_config(["--config", recipe, "--deepspeed", "none"]).deepspeed is None
    with pytest.raises(UserError, match=r"r\.yaml:1: deepspeed = 2: must be the name"):
        load_config(["--config", write(tmp_path, "deepspeed: 2\n")])


def test_help_lists_every_section_and_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load_config(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in ("--deepspeed", "model:", "sources", "learning_rate", "train_every", "--batch_size"):
        assert word in text


def test_numbers_stay_as_written() -> None:
    training = load_config(["--save_steps", "500", "--learning_rate", "1e-5"]).config.training
    assert isinstance(training["save_steps"], int)
    assert training["learning_rate"] == 1e-5


def test_argument_falls_back_to_the_default_of_hf() -> None:
    config = load_config([]).config
    assert config.argument("learning_rate") == config.training["learning_rate"]
    assert "max_grad_norm" not in config.training
    assert config.argument("max_grad_norm") == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "training:\n  learning_rte: 1\n",
            "r.yaml:2: unknown key training.learning_rte: did you mean training.learning_rate?",
        ),
        ("training:\n  learning_rate: fast\n", "r.yaml:2: training.learning_rate = 'fast': must be a number"),
        ("training:\n  seq_len: 8\n", "r.yaml:2: unknown key training.seq_len: did you mean data.seq_len?"),
        ("training:\n  max_steps: 1e3\n", "r.yaml:2: training.max_steps = 1000.0: must be an integer"),
        ("training:\n  bf16: yes\n", "r.yaml:2: training.bf16 = 'yes': must be true or false"),
        (
            "training:\n  optim: adamw_torch_fusd\n",
            "r.yaml:2: training.optim = 'adamw_torch_fusd': unknown; did you mean adamw_torch_fused? "
            "docs/choices.md lists all",
        ),
        ("training:\n  optim: best\n", "r.yaml:2: training.optim = 'best': unknown; docs/choices.md lists all"),
        (
            "training:\n  report_to: mlflow\n",
            "r.yaml:2: training.report_to = 'mlflow': must be one of wandb, tensorboard",
        ),
        (
            "training:\n  report_to: [wandb, mlflow]\n",
            "must be one of wandb, tensorboard, none or a list of any of wandb, tensorboard, none",
        ),
        ("training:\n  group_by_length: true\n", "was removed from TrainingArguments: use data.packing: best_fit"),
        (
            "training:\n  warmup_ratio: 2\n",
            "r.yaml:2: training.warmup_ratio = 2: must be a fraction of all steps, below 1",
        ),
        ("training:\n  logging_nan_inf_filter: true\n", "hides NaN losses"),
        ("training:\n  torch_empty_cache_steps: 5\n", "use perf.empty_cache_every"),
        ("training:\n  auto_find_batch_size: true\n", "the global batch shrinks unseen"),
        (
            "training:\n  deepspeed: x.json\n",
            "r.yaml:2: training.deepspeed: write `deepspeed: zero2_bf16` at the top level",
        ),
        ("training:\n  hub_token: hf_x\n", "HF_TOKEN"),
        ("training:\n  seed: 1\n  seed: 2\n", "r.yaml:3: duplicate key training.seed: first written in line 2"),
        ("mode:\n  path: x\n", "r.yaml:1: unknown section mode: did you mean model?"),
        (
            "model:\n  config: {hiden_size: 3}\n",
            "r.yaml:2: unknown key model.config.hiden_size: did you mean model.config.hidden_size? (to use "
            "another architecture, set model.config.model_type)",
        ),
        (
            "model:\n  kind: minigpt\n  config:\n    hidden_act: silu\n",
            "r.yaml:4: model.config.hidden_act = 'silu': must be one of swiglu",
        ),
        (
            "perf:\n  profile_steps: [5, 2]\n",
            "r.yaml:1: perf: profile_steps = [5, 2]: the first step comes after the last",
        ),
        ("perf:\n  profile_steps: [5]\n", "r.yaml:2: perf.profile_steps = [5]"),
        ("perf:\n  num_threads: 0\n", "r.yaml:2: perf.num_threads = 0"),
    ],
)
def test_bad_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, text)
    with pytest.raises(UserError) as error:
        load_config(["--config", "r.yaml"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--config", "minigpt_smal"],
            "recipe 'minigpt_smal' does not exist; did you mean minigpt_small? (others: debug, ",
        ),
        (["--deepspeed", "zero2_bf61"], "'zero2_bf61' does not exist; did you mean zero2_bf16? (others: zero1_bf16, "),
        (["--path", "x"], "--path is ambiguous: write one of --model.path, --tokenizer.path"),
        (["--learning_rte", "1"], "did you mean --learning_rate?"),
        (["--torch_empty_cache_steps", "5"], "use perf.empty_cache_every"),
        (["--max_steps", "many"], "command line: training.max_steps = 'many': must be an integer"),
        (["--bf16", "1"], "command line: unexpected '1'"),
        (
            ["--resume", "nowhere"],
            "--resume = 'nowhere': no such directory: give auto, never or the path of a checkpoint",
        ),
    ],
)
def test_bad_command_lines(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(argv)
    assert message in str(error.value)


OVERRIDES = {
    "training.per_device_train_batch_size": "3", "training.learning_rate": "2e-4", "data.seq_len": "64",
    "perf.log_every": "7",
    "model.config.hidden_size": "128", "monitor.sample_prompt": "x = 1", "tokenizer.special_tokens": "[<|a|>, <|b|>]",
    "training.report_to": "wandb", "perf.profile_steps": "[1, 2]",
}  # fmt: skip


@given(st.lists(st.sampled_from(sorted(OVERRIDES)), unique=True), st.randoms(use_true_random=False))
def test_order_and_spelling_of_overrides_do_not_matter(keys: list[str], rng: random.Random) -> None:
    plain = load_config([f"{key}={OVERRIDES[key]}" for key in keys]).config
    shuffled = rng.sample(keys, len(keys))
    argv: list[str] = []
    for key in shuffled:
        name = key if key.startswith("model.") or rng.random() < 0.5 else key.split(".")[1]
        name = "".join(rng.choice("-_") if c in "-_" else c for c in name)
        argv += rng.choice([[f"--{name}", OVERRIDES[key]], [f"--{name}={OVERRIDES[key]}"]])
    assert load_config(argv).config == plain


def test_later_errors_are_located_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "data:\n  sources:\n    - path: nowhere.jsonl\n")
    loaded = load_config(["--config", "r.yaml", "--attn_implementation", "flsh"])
    assert loaded.located("data.sources.0.path: no file").startswith("r.yaml:")
    assert loaded.located("model.attn_implementation: unknown") == "command line: model.attn_implementation: unknown"
    assert loaded.located("data.seq_len: odd") == "data.seq_len: odd"
    assert loaded.located("no key at all") == "no key at all"
