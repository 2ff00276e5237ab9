"""Defaults that depend on other fields, and what is refused."""

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from tests.models.tiny import tiny_minigpt
from training.models.minigpt import MiniGPTConfig
from training.models.minigpt.activations import ACTIVATIONS


def test_defaults_are_the_quickstart_model() -> None:
    config = MiniGPTConfig()
    assert (config.head_dim, config.intermediate_size) == (64, 1024)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10_000.0}


@pytest.mark.parametrize("hidden_act", ACTIVATIONS)
def test_left_out_width_gives_each_activation_the_same_weights(hidden_act: str) -> None:
    shape = {"hidden_size": 96, "intermediate_size": None}
    mlp = tiny_minigpt(**shape, hidden_act=hidden_act).model.layers[0].mlp
    matrices = sum(p.numel() for p in mlp.parameters() if p.dim() == 2)
    assert matrices == 8 * 96 * 96


def test_rope_theta_survives_saving(tmp_path) -> None:
    fields: dict = {"rope_theta": 5e5}
    MiniGPTConfig(**fields).save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, MiniGPTConfig)
    assert dict(loaded.rope_parameters or {})["rope_theta"] == 5e5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_key_value_heads": 4}, "num_attention_heads: 6 is not a multiple of num_key_value_heads: 4"),
        ({"hidden_act": "silu"}, "hidden_act: 'silu' is not one of swiglu"),
        ({"head_dim": 7}, "head_dim: 7 must be even"),
    ],
)
def test_refuses_a_shape_that_cannot_be(fields: dict, message: str) -> None:
    with pytest.raises(StrictDataclassError, match=message):
        MiniGPTConfig(**fields)
