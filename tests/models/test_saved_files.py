"""What is saved carries the fields of transformers 4 and 5, and both generations compute the same of it."""

import json
import logging
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.models.tiny import SHAPE, chat_tokenizer, tiny_minigpt
from training.models.saved_files import complete_config, complete_files, complete_tokenizer_config, make_savable

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "factor": 4.0}
EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
# Model type, fields beside SHAPE, and what version 4 must find under its own names.
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen2": ("qwen2", {"rope_theta": 1e6, "tie_word_embeddings": True}, {"rope_theta": 1e6}),
    "qwen2_window": (
        "qwen2",
        {"rope_theta": 1e6, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "qwen2.5_yarn": ("qwen2", {"rope_theta": 1e6, "rope_scaling": YARN}, {"rope_theta": 1e6, "rope_scaling": YARN}),
    "qwen3": ("qwen3", {"rope_theta": 1e6, "head_dim": 32}, {"rope_theta": 1e6}),
    "llama3": ("llama", {"rope_theta": 5e5, "rope_scaling": LLAMA3}, {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
    "llama_linear": ("llama", {"rope_theta": 2e4, "rope_scaling": LINEAR}, {"rope_scaling": LINEAR}),
    "smollm2": ("llama", {"rope_theta": 1e5, "tie_word_embeddings": True}, {"rope_theta": 1e5}),
    "glm4": ("glm4", {"head_dim": 16, "partial_rotary_factor": 0.5}, {"partial_rotary_factor": 0.5}),
    "gemma3": (
        "gemma3_text",
        {"head_dim": 16, "rope_theta": 2e6, "rope_local_base_freq": 2e4},
        {"rope_theta": 2e6, "rope_local_base_freq": 2e4},
    ),
    "qwen2_moe": ("qwen2_moe", {"rope_theta": 1e6, **EXPERTS}, {"rope_theta": 1e6, "num_experts": 4}),
    "qwen3_moe": ("qwen3_moe", {"rope_theta": 1e6, "head_dim": 16, **EXPERTS}, {"rope_theta": 1e6, "num_experts": 4}),
    "minigpt": ("minigpt", {"rope_theta": 2e4}, {"rope_theta": 2e4}),
    "minigpt_yarn": ("minigpt", {"rope_theta": 2e4, "rope_scaling": YARN}, {"rope_scaling": YARN}),
}


def build(name: str) -> Any:
    model_type, fields, _ = MODELS[name]
    shape = SHAPE | {"max_position_embeddings": 256, "initializer_range": 0.2, "pad_token_id": 0, "eos_token_id": 2}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **deepcopy(shape | fields))).eval()


@pytest.mark.parametrize("name", MODELS)
def test_a_config_has_the_fields_of_version_4_and_is_the_same_in_version_5(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.config.save_pretrained(tmp_path)
    complete_files(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert {key: saved[key] for key in MODELS[name][2]} == MODELS[name][2]
    own = model.config.to_dict()
    read = AutoConfig.from_pretrained(tmp_path).to_dict() | {"_name_or_path": own["_name_or_path"]}
    assert {key: read[key] for key in own} == own
    default = own["rope_parameters"].get("rope_type", "default") == "default"
    assert ("rope_scaling" in saved) == (not default)


def test_the_dtype_has_both_names(tmp_path: Path) -> None:
    tiny_minigpt().bfloat16().save_pretrained(tmp_path)
    complete_files(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["dtype"] == saved["torch_dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16


def test_what_version_4_cannot_say_stays_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Version 4 has no name for the scaling of sliding layers alone."""
    full, local = {**LINEAR, "rope_theta": 1e6}, {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    parameters = {"full_attention": full, "sliding_attention": local}
    saved = {**AutoConfig.for_model("gemma3_text", **SHAPE).to_dict(), "rope_parameters": deepcopy(parameters)}
    completed = complete_config(saved)
    assert completed == saved
    assert "no fields of transformers 4 say the rope_parameters of this gemma3_text" in caplog.text
    parameters = {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    plain = complete_config({**saved, "rope_parameters": parameters})
    assert plain["rope_scaling"] == LINEAR and plain["rope_local_base_freq"] == 1e4
    foreign = {"model_type": "of_its_own_code", "rope_parameters": parameters}
    assert complete_config(foreign) == foreign


def test_a_tokenizer_config_in_words_of_both() -> None:
    saved = {
        "extra_special_tokens": ["<a>"],
        "tokenizer_class": "TokenizersBackend",
        "is_local": True,
        "eos_token": "<a>",
    }
    completed = {"additional_special_tokens": ["<a>"], "eos_token": "<a>", "tokenizer_class": "PreTrainedTokenizerFast"}
    assert complete_tokenizer_config(saved) == completed
    named = {"extra_special_tokens": {"image_token": "<i>"}, "tokenizer_class": "Qwen2Tokenizer"}
    assert complete_tokenizer_config(named) == named


def test_a_completed_tokenizer_is_the_same_in_version_5(tmp_path: Path) -> None:
    own = chat_tokenizer()
    own.save_pretrained(tmp_path)
    complete_files(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert read.extra_special_tokens == own.extra_special_tokens and read.all_special_ids == own.all_special_ids
    text = "<|im_start|> user w20 <|im_end|>"
    assert read(text).input_ids == own(text).input_ids == [1, 7, 20, 2]
    assert read.model_max_length == own.model_max_length


@pytest.mark.parametrize(
    "options,expected",
    [
        ({"temperature": 0.6, "top_p": 0.9}, {"do_sample": True, "temperature": 0.6, "top_p": 0.9}),
        ({"length_penalty": 2.0, "num_beams": 1}, {}),
        ({"do_sample": True, "temperature": 0.6}, {"do_sample": True, "temperature": 0.6}),
    ],
)
def test_a_generation_config_can_be_saved_after_a_change(
    options: dict[str, Any], expected: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_minigpt()
    model.generation_config = GenerationConfig(eos_token_id=2, **options)
    with caplog.at_level(logging.WARNING, logger="redline.models"):
        make_savable(model)
    assert ("generation_config.json of the model" in caplog.text) == (options != expected)
    model.generation_config.eos_token_id = [3, 2]
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [3, 2]
    assert {
        key: saved[key] for key in ("do_sample", "temperature", "top_p", "length_penalty") if key in saved
    } == expected


CHECK = """
import sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
assert transformers.__version__.startswith("4."), transformers.__version__
ids = torch.arange(3, 99)[None]
for path in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, torch.load(f"{path}/logits.pt"), atol=1e-5, rtol=1e-5)
    pair = torch.tensor([[5, 6, 7, 8], [0, 0, 7, 8]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    written = model.generate(pair, attention_mask=mask, max_new_tokens=4, do_sample=False, eos_token_id=-1)
    assert written.tolist() == torch.load(f"{path}/written.pt").tolist(), path
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert tokenizer.additional_special_tokens[:2] == ["<|im_start|>", "<|im_end|>"]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "w20"}], add_generation_prompt=True)
    assert chat == [1, 7, 20, 2, 1, 8], chat
"""


@pytest.mark.skipif(
    "REDLINE_TRANSFORMERS_4" not in os.environ,
    reason="REDLINE_TRANSFORMERS_4 names no folder with transformers 4 (docs/final.md has the command that fills one)",
)
def test_version_4_computes_and_writes_the_same(tmp_path: Path) -> None:
    for name in MODELS:
        model, path = build(name), tmp_path / name
        model.save_pretrained(path)
        chat_tokenizer().save_pretrained(path)
        complete_files(path)
        ids, pair = torch.arange(3, 99)[None], torch.tensor([[5, 6, 7, 8], [0, 0, 7, 8]])
        mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
        with torch.no_grad():
            torch.save(model(ids).logits, path / "logits.pt")
            written = model.generate(pair, attention_mask=mask, max_new_tokens=4, do_sample=False, eos_token_id=-1)
        torch.save(written, path / "written.pt")
    environment = os.environ | {"PYTHONPATH": os.environ["REDLINE_TRANSFORMERS_4"], "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", CHECK, *(str(tmp_path / name) for name in MODELS)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
