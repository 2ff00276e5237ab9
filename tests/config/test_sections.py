import inspect

from training.config.sections import MiniGPTFields
from training.models.minigpt.configuration_minigpt import MiniGPTConfig


def test_minigpt_fields_are_those_of_its_config() -> None:
    """`rope_theta` is a keyword that MiniGPTConfig keeps in rope_parameters."""
    assert set(MiniGPTFields.model_fields) - {"rope_theta"} <= set(inspect.signature(MiniGPTConfig.__init__).parameters)
    assert MiniGPTConfig(rope_theta=123.0).rope_parameters["rope_theta"] == 123.0
