"""Arguments that change what is trained do, on every kind of model, what their documentation says.

Each run is trained again in plain PyTorch (`plain_training.py`); the cases loop over arguments and models.
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from data_prep.prepare import prepare
from data_prep.recipe import load_data_recipe
from tests.integration import plain_training

pytestmark = [pytest.mark.launch, pytest.mark.timeout(600)]

# Of each run; its cases change one of them. `float32`, since rounding to bf16 hides small differences.
SAME = {
    "max_steps": 3, "bf16": "false", "learning_rate": 1e-3, "lr_scheduler_type": "constant", "warmup_steps": 0,
    "weight_decay": 0.1, "adam_beta1": 0.9, "adam_beta2": 0.95, "adam_epsilon": 1e-8, "max_grad_norm": 1.0,
    "label_smoothing_factor": 0.0, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2,
    "optim": "adamw_torch_fused", "seed": 1, "gradient_checkpointing": "false",
}  # fmt: skip
CASES = {
    "as_it_is": {},
    "learning_rate": {"learning_rate": 3e-3},
    "lr_scheduler_type": {"lr_scheduler_type": "cosine"},
    "warmup_steps": {"lr_scheduler_type": "linear", "warmup_steps": 2},
    "warmup_share": {"lr_scheduler_type": "linear", "warmup_steps": 0.34},
    "weight_decay": {"weight_decay": 20.0},
    "adam_beta1": {"adam_beta1": 0.5},
    "adam_beta2": {"adam_beta2": 0.5},
    "adam_epsilon": {"adam_epsilon": 1e-2},
    "max_grad_norm": {"max_grad_norm": 1e-3, "adam_epsilon": 1e-2},  # Adam alone undoes a common factor
    "no_clipping": {"max_grad_norm": 0, "optim": "sgd", "learning_rate": 0.5},
    "label_smoothing_factor": {"label_smoothing_factor": 0.4},
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 3},
    "per_device_train_batch_size": {"per_device_train_batch_size": 3},
    "average_tokens_across_devices": {"average_tokens_across_devices": "false"},
    "optim": {"optim": "sgd", "learning_rate": 0.5},
    "seed": {"seed": 2},
    "gradient_checkpointing": {"gradient_checkpointing": "true"},
    "max_steps": {"max_steps": 2},
}
UNCHANGED = (
    "as_it_is",
    "average_tokens_across_devices",
    "gradient_checkpointing",
)
QUIET = ["perf.enabled=false", "data.verify_packing=false", "monitor.plot_every=0", "data.pad_to_multiple_of=8"]
SHAPE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "attention_dropout": 0.0,
}  # fmt: skip
MODELS = ("minigpt", "qwen2", "llama", "lora")


@pytest.fixture(scope="module")
def flags(recipe, tmp_path_factory):
    """What chooses each kind of model."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = prepare(*load_data_recipe(["--config", str(recipe)])).tokenizer_dir
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**SHAPE, vocab_size=512, tie_word_embeddings=True)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    shape = json.dumps(SHAPE)
    from_scratch = ["model.kind=null", f"tokenizer.path={tokenizer}"]
    return {
        "minigpt": [f"model.config={shape}"],
        "qwen2": [*from_scratch, f"model.config={json.dumps({'model_type': 'qwen2', **SHAPE})}"],
        "llama": [*from_scratch, f"model.config={json.dumps({'model_type': 'llama', **SHAPE})}"],
        "lora": [f"model.path={folder}", "adapter.method=lora", "adapter.r=4", "adapter.dropout=0"],
    }


@pytest.fixture(scope="module", params=MODELS)
def runs(request, launch_all, flags, recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    commands = {
        name: [*flags[request.param], *QUIET, *(f"training.{key}={value}" for key, value in {**SAME, **case}.items())]
        for name, case in CASES.items()
    }
    script = Path(plain_training.__file__)
    return launch_all("python", folder, commands, recipe, script)


def test_each_argument_does_what_its_documentation_says(runs):
    apart = {name: run.json("plain.json")["apart"] / run.json("plain.json")["moved"] for name, run in runs.items()}
    # Shares of what moved; sums differ in order.
    assert {name: share for name, share in apart.items() if not share < 5e-4} == {}


def test_each_argument_changes_what_is_trained(runs):
    def distance(one, other):
        return sum((one[name] - other[name]).square().sum().item() for name in one) ** 0.5

    weights = {name: torch.load(run.path / "weights.pt", weights_only=True) for name, run in runs.items()}
    moved = runs["as_it_is"].json("plain.json")["moved"]
    changed = {name: distance(weights["as_it_is"], of_run) / moved for name, of_run in weights.items()}
    still = {name for name, share in changed.items() if share < 1e-2}
    assert still == {*UNCHANGED}
    assert runs["max_steps"].json("plain.json")["steps"] == CASES["max_steps"]["max_steps"]
