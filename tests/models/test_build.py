"""`build_model`: dtypes, the meta device, contradictory sections."""

from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.errors import UserError
from tests.models.tiny import SHAPE, build_tiny
from training.activations.modes import FULL
from training.config.sections import ModelSection
from training.models.adapters import trainable_share
from training.models.build import check_model, resolve_parameter_dtype
from training.models.known_architectures import KNOWN_ARCHITECTURES

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("requested", "compute", "frozen", "expected"),
    [
        ("auto", BF16, False, FP32),  # masters keep full precision
        ("auto", BF16, True, BF16),
        ("auto", FP32, True, FP32),
        ("bfloat16", BF16, False, BF16),
        ("float32", BF16, True, FP32),
        ("float16", FP16, True, FP16),
    ],
)
def test_parameter_dtype(requested: str, compute: torch.dtype, frozen: bool, expected: torch.dtype) -> None:
    assert resolve_parameter_dtype(requested, compute_dtype=compute, frozen=frozen) == expected


def test_float16_parameters_that_train_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.dtype: float16 parameters cannot be trained"):
        resolve_parameter_dtype("float16", compute_dtype=FP16, frozen=False)


def test_rows_longer_than_the_positions_are_refused_of_a_model_from_scratch(qwen_dir: Path, caplog) -> None:
    scratch = ModelSection.model_validate({"config": {"max_position_embeddings": 64}})
    check_model(scratch, 64, on_cpu=True)
    with pytest.raises(UserError, match=r"data\.seq_len: rows of 65 tokens, but the model has 64 positions"):
        check_model(scratch, 65, on_cpu=True)
    check_model(ModelSection.model_validate({"path": str(qwen_dir)}), 10**6, on_cpu=True)
    assert "rows of 1000000 tokens" in caplog.text


@pytest.mark.parametrize(("name", "why"), [("flash_attention_2", "it needs a CUDA device"), ("foo", "unknown, one of")])
def test_attention_that_cannot_run_is_refused_before_there_is_data(name: str, why: str) -> None:
    with pytest.raises(UserError, match=rf"model\.attn_implementation: '{name}' cannot be used: {why}"):
        check_model(ModelSection.model_validate({"attn_implementation": name}), 64, on_cpu=True)


@pytest.mark.parametrize("adapter", [{}, {"method": "lora"}])
def test_dtypes_of_a_loaded_model(qwen_dir: Path, adapter: dict[str, Any]) -> None:
    model = build_tiny({"path": str(qwen_dir)}, adapter, dtype=BF16)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {FP32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == ({BF16} if adapter else set())


def test_same_seed_same_weights() -> None:
    first, second = (build_tiny({"config": SHAPE}).state_dict() for _ in range(2))
    torch.testing.assert_close(first, second, atol=0, rtol=0)


def test_weights_beyond_the_memory_are_refused_before_they_are_drawn() -> None:
    huge = {**SHAPE, "hidden_size": 65536, "intermediate_size": 262144, "num_hidden_layers": 400}
    with pytest.raises(UserError, match=r"model: there is no memory for its weights: they take [\d,.]+ GB, [\d,.]+ GB"):
        build_tiny({"kind": "minigpt", "config": huge})


def test_gradient_checkpointing_is_on_in_every_layer() -> None:
    model = build_tiny({"config": SHAPE}, checkpointing=FULL)
    assert model.is_gradient_checkpointing
    assert all(layer.gradient_checkpointing for layer in model.model.layers)


PUBLISHED = {"Qwen/Qwen2.5-0.5B": 494_032_768, "Qwen/Qwen2.5-7B": 7_615_616_512}


@pytest.mark.parametrize("name", KNOWN_ARCHITECTURES)
def test_known_architectures_have_the_published_sizes_without_the_hub(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="redline.models"):
        model = build_tiny({"path": name}, meta=True, vocab_size=151_665)
    assert trainable_share(model).total == PUBLISHED[name.removesuffix("-Instruct")]
    assert all(parameter.is_meta for parameter in model.parameters())
    assert f"{name} is not in the hub cache: planning with its published shape" in caplog.messages


@pytest.mark.parametrize("adapter", [{}, {"method": "lora"}, {"method": "lora", "load_in_4bit": True}])
def test_meta_build_counts_as_the_real_one(qwen_dir: Path, adapter: dict[str, Any]) -> None:
    real, meta = (build_tiny({"path": str(qwen_dir)}, adapter, meta=on_meta) for on_meta in (False, True))
    assert trainable_share(meta) == trainable_share(real)
    assert all(parameter.is_meta for parameter in meta.parameters())
    assert [(n, type(m).__name__) for n, m in meta.named_modules()] == [
        (n, type(m).__name__) for n, m in real.named_modules()
    ]


def test_meta_build_needs_no_weights(qwen_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((qwen_dir / "config.json").read_text())
    assert build_tiny({"path": str(tmp_path)}, meta=True).num_parameters() > 0


@pytest.mark.parametrize(
    ("model", "adapter", "message"),
    [
        ({"path": "x", "kind": "minigpt"}, {}, "model.path and model.kind are both set"),
        ({"path": "x", "config": {"hidden_size": 8}}, {}, "model.path and model.config are both set"),
        ({"path": "x"}, {"load_in_4bit": True}, "set adapter.method: lora"),
        ({}, {"method": "lora", "load_in_4bit": True}, "needs saved weights: set model.path"),
    ],
)
def test_contradictions(model: dict[str, Any], adapter: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_tiny(model, adapter)
