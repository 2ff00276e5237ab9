import inspect
from typing import Any

from training.config.sections import MiniGPTFields
from training.models.minigpt.configuration_minigpt import MiniGPTConfig


def test_minigpt_fields_are_those_of_its_config() -> None:
    """`rope_theta` is a keyword that MiniGPTConfig keeps in rope_parameters."""
    assert set(MiniGPTFields.model_fields) - {"rope_theta"} <= set(inspect.signature(MiniGPTConfig.__init__).parameters)
    keyword: dict[str, Any] = {"rope_theta": 123.0}
    assert (MiniGPTConfig(**keyword).rope_parameters or {}).get("rope_theta") == 123.0
