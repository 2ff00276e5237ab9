"""LoRA and QLoRA from a chat file to a checked, mergeable adapter: alone on a CPU and under two ZeRO-2 ranks."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from data_prep.prepare import prepare
from data_prep.recipe import load_data_recipe
from training.checkpoints.manifest import verify_checkpoint
from training.export import export
from training.metrics import names
from training.models.trained import load_trained

RECIPE = """
model: {{path: {base}}}
adapter: {{method: lora, r: 4, alpha: 8}}
data: {{sources: [{{path: {chats}}}], store_dir: {stores}, seq_len: 64, num_proc: 1, validation_share: 0.1}}
training:
  {{per_device_train_batch_size: 2, gradient_accumulation_steps: 2, max_steps: 6, learning_rate: 1.0e-2,
    lr_scheduler_type: constant, warmup_steps: 0, eval_strategy: steps, eval_steps: 3, save_strategy: "no"}}
monitor: {{train_every: 1, plot_every: 0}}
perf: {{log_every: 1}}
"""


@pytest.fixture(scope="module")
def sft_recipe(recipe, tmp_path_factory):
    """A Qwen2 of 0.1 M parameters with random weights, the tiny recipe's tokenizer, and 80 conversations."""
    folder = tmp_path_factory.mktemp("sft")
    tokenizer = AutoTokenizer.from_pretrained(prepare(*load_data_recipe(["--config", str(recipe)])).tokenizer_dir)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=1, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    with (folder / "chats.jsonl").open("w") as file:
        for number in range(80):
            messages = [
                {"role": "user", "content": f"def add_{number}(a, b):"},
                {"role": "assistant", "content": f"return a + b  # {number}"},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    path = folder / "sft.yaml"
    path.write_text(RECIPE.format(base=folder / "base", chats=folder / "chats.jsonl", stores=folder / "stores"))
    return path


@pytest.mark.launch
@pytest.mark.timeout(600)
@pytest.mark.parametrize("launcher", ["python", "deepspeed"])
def test_adapters_train_save_reload_and_merge(launch_all, sft_recipe, tmp_path, launcher):
    json_file = ["--deepspeed", "zero2_bf16"] if launcher == "deepspeed" else []
    saved = ["training.save_strategy=steps", "training.save_steps=6", "checkpoint.async=true"]
    runs = {"lora": ["adapter.dora=true", *saved, *json_file], "qlora": ["adapter.load_in_4bit=true", *json_file]}
    lora, qlora = launch_all(launcher, tmp_path, runs, config=sft_recipe).values()
    for finished in (lora, qlora):
        losses = finished.values(names.TRAIN_LOSS)
        assert losses[-1] < losses[0] - 0.1
        summary = finished.json("summary.json")
        assert 0 < summary["trainable_parameters"] < 0.2 * summary["parameters"]
        final = finished.path / "final"
        assert (final / "adapter_model.safetensors").exists() and not (final / "model.safetensors").exists()
        assert summary["sample"]["prompt"].endswith("<|im_start|>assistant\n")
        assert summary["sample"]["stopped"] == summary["sample"]["text"].endswith(("<|im_end|>", "<|endoftext|>"))
    verify_checkpoint(lora.path / "checkpoint-6")
    weights = [lora.path / folder / "adapter_model.safetensors" for folder in ("checkpoint-6", "final")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    for saved_dir in (lora.path / "checkpoint-6", lora.path / "final", qlora.path / "final"):
        tokenizer = AutoTokenizer.from_pretrained(saved_dir)
        assert tokenizer.eos_token == "<|im_end|>" and "<|im_start|>" in tokenizer.chat_template
        generation = GenerationConfig.from_pretrained(saved_dir)
        assert generation.eos_token_id == [tokenizer.eos_token_id, 0]
        assert "extra_special_tokens" not in json.loads((saved_dir / "tokenizer_config.json").read_text())
    assert lora.output.count("trainable parameters:") == 2
    assert lora.output.count("logits equal those in memory") == 2

    export(lora.path / "final", tmp_path / "merged", "merged")
    assert GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id == generation.eos_token_id
    ids = torch.arange(2, 34)[None]
    with torch.no_grad():
        adapted = load_trained(lora.path / "final", device=torch.device("cpu"), dtype=torch.float32)(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)(ids).logits
    torch.testing.assert_close(merged, adapted, atol=1e-3, rtol=1e-3)
