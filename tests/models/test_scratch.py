"""Models from a recipe's fields: what is built, and which slips are caught."""

from typing import Any

import pytest

from data_prep.errors import UserError
from tests.models.tiny import SHAPE, VOCAB_SIZE, build_tiny
from training.models.minigpt import MiniGPTForCausalLM

QWEN_TINY = {key: value for key, value in SHAPE.items() if key != "vocab_size"}


@pytest.mark.parametrize(
    ("fields", "class_name"),
    [
        ({"model_type": "qwen2"}, "Qwen2ForCausalLM"),
        ({"model_type": "qwen2", "rope_theta": 1e6, "tie_word_embeddings": True}, "Qwen2ForCausalLM"),  # Qwen2.5
        ({"model_type": "qwen3", "head_dim": 32}, "Qwen3ForCausalLM"),
        ({"model_type": "llama"}, "LlamaForCausalLM"),
        ({"model_type": "qwen3_moe", "head_dim": 32, "num_experts": 9}, "Qwen3MoeForCausalLM"),
    ],
)
def test_any_architecture_by_its_fields(fields: dict[str, Any], class_name: str, token_ids) -> None:
    model = build_tiny({"config": QWEN_TINY | fields})
    assert type(model).__name__ == class_name
    assert model.config.vocab_size == VOCAB_SIZE
    assert (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == (0, 1, 2)
    if "head_dim" in fields:  # Qwen3-MoE reads it and does not declare it
        assert model.model.layers[0].self_attn.head_dim == 32
    if "rope_theta" in fields:
        assert model.config.rope_parameters["rope_theta"] == 1e6
    model(input_ids=token_ids, labels=token_ids).loss.backward()


@pytest.mark.parametrize("section", [{}, {"kind": "minigpt"}, {"config": {"model_type": "minigpt"}}])
def test_nothing_said_means_minigpt(section: dict[str, Any]) -> None:
    assert isinstance(build_tiny(section, meta=True), MiniGPTForCausalLM)


def test_minigpt_fields_arrive() -> None:
    config = build_tiny({"kind": "minigpt", "config": SHAPE | {"hidden_act": "relu2", "rope_theta": 3e4}}).config
    assert (config.hidden_size, config.hidden_act, config.rope_parameters["rope_theta"]) == (64, "relu2", 3e4)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"config": {"model_type": "qwen2", "num_layer": 2}}, "num_layer: 2: qwen2 has .* 'num_hidden_layers'"),
        ({"config": {"hiden_size": 64}}, "model.config.hiden_size: 64: minigpt has no such field.*'hidden_size'"),
        ({"config": {"model_type": "qwen22"}}, "'qwen22' is unknown to transformers, did you mean 'qwen2'"),
        ({"config": {"model_type": "vit"}}, "'vit' is not a causal language model"),
        ({"kind": "minigpt", "config": {"model_type": "qwen2"}}, "contradicts model.config.model_type"),
        ({"config": {"vocab_size": 100}}, "vocab_size: 100 is less than the tokenizer's 128"),
        ({"config": {"torch_dtype": "bfloat16"}}, "set model.dtype instead"),
        ({"config": {"hidden_act": "silu"}}, "hidden_act: 'silu' is not one of"),
        (
            {"config": {"model_type": "qwen2", "num_attention_heads": 7}},
            "num_key_value_heads: 32 does not divide",
        ),
        ({"config": {"model_type": "qwen3_moe", "num_experts": 4}}, "num_experts_per_tok: 8 is more than .* 4 experts"),
        ({"config": {"hidden_size": "big"}}, "model.config: .*hidden_size|model.config: .*str"),
    ],
)
def test_slips_are_named(section: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_tiny(section, meta=True)
