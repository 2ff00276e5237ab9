"""Loading `model.path`: what goes wrong is said; what is too small is grown or refused."""

import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from data_prep.errors import UserError
from tests.models.tiny import VOCAB_SIZE, build_tiny
from training.config.sections import ModelSection
from training.models.build import check_model
from training.models.pretrained import load_config


@pytest.mark.parametrize("fixture", ["qwen_dir", "minigpt_dir"])
def test_loads_the_saved_weights(fixture: str, request: pytest.FixtureRequest, token_ids: torch.Tensor) -> None:
    directory: Path = request.getfixturevalue(fixture)
    expected = AutoModelForCausalLM.from_pretrained(directory).eval()(token_ids).logits
    model = build_tiny({"path": str(directory), "attn_implementation": "sdpa"}).eval()
    torch.testing.assert_close(model(token_ids).logits, expected, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/no/such/place", r"model\.path: '/no/such/place' does not exist"),
        ("./runs/none", r"model\.path: './runs/none' does not exist"),
        ("org/unknown-model", r"is no directory here and could not be had from the hub"),
    ],
)
@pytest.mark.parametrize("meta", [True, False])
def test_a_path_that_leads_nowhere(path: str, message: str, meta: bool) -> None:
    with pytest.raises(UserError, match=message):
        build_tiny({"path": path}, meta=meta)


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no config\.json"):
        build_tiny({"path": str(tmp_path)})


def test_an_adapter_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="is an adapter: merge it first with python -m training.export"):
        build_tiny({"path": str(tmp_path)})


def test_code_in_a_model_directory_is_not_run_unasked(tmp_path: Path) -> None:
    config = {"model_type": "homemade", "auto_map": {"AutoConfig": "homemade.HomemadeConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "homemade.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match=r"set model\.trust_remote_code: true"):
        build_tiny({"path": str(tmp_path)})


def test_missing_weights_are_an_error(qwen_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((qwen_dir / "config.json").read_text())
    weights = load_file(qwen_dir / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights .*layers\.1\.mlp\.down_proj"):
        build_tiny({"path": str(tmp_path)})


@pytest.mark.parametrize("meta", [True, False])
def test_a_small_vocabulary_grows_when_everything_trains(
    minigpt_dir: Path, meta: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="redline.models"):
        model: Any = build_tiny({"path": str(minigpt_dir)}, vocab_size=VOCAB_SIZE + 3, meta=meta)
    assert model.config.vocab_size == model.lm_head.weight.shape[0] == VOCAB_SIZE + 64
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert f"grown from {VOCAB_SIZE} to {VOCAB_SIZE + 64} rows for {VOCAB_SIZE + 3} token ids" in caplog.text


def test_a_small_vocabulary_is_refused_under_lora(minigpt_dir: Path) -> None:
    with pytest.raises(UserError, match="131 ids but model.path has 128 embeddings"):
        build_tiny({"path": str(minigpt_dir)}, {"method": "lora"}, vocab_size=VOCAB_SIZE + 3)


def test_a_large_vocabulary_is_left_alone(minigpt_dir: Path) -> None:
    assert build_tiny({"path": str(minigpt_dir)}, vocab_size=100).config.vocab_size == VOCAB_SIZE


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "t5"}, "is a t5, no causal language model"),
        ({"model_type": "bert"}, "is an encoder \\(bert\\)"),
        (
            {"model_type": "qwen2", "quantization_config": {"quant_method": "gptq", "bits": 4}},
            "is quantised \\(gptq\\)",
        ),
        ({"model_type": "qwen2", "hidden_size": "big"}, "cannot be loaded"),
        ({"model_type": "qwen2", "num_hidden_layers": 3, "layer_types": ["full_attention"]}, "cannot be loaded"),
    ],
)
def test_checkpoints_that_are_not_trained(tmp_path, fields, message):
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=message):
        load_config(ModelSection(path=str(tmp_path)))


@pytest.mark.parametrize(("kind", "refused"), [("gpt2", True), ("qwen2", False)])
def test_rows_beyond_a_table_of_positions_are_refused(tmp_path, kind, refused, caplog):
    fields = {"model_type": kind, "n_positions" if kind == "gpt2" else "max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="64 positions, which are a table") if refused else nullcontext():
        check_model(ModelSection(path=str(tmp_path)), 128, on_cpu=True)
    assert refused or "64 positions" in caplog.text
