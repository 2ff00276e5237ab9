"""Saved tiny models, made once for the tests of this folder. The hub is off: an unknown name fails at once."""

from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from tests.models.tiny import SHAPE, VOCAB_SIZE, tiny_minigpt


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path_factory.getbasetemp() / "empty_cache"))


@pytest.fixture(scope="session")
def minigpt_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("minigpt")
    tiny_minigpt().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def qwen_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("qwen2")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(Qwen2Config(**SHAPE)).save_pretrained(directory)
    return directory


@pytest.fixture
def token_ids() -> torch.Tensor:
    """(2, 24) random ids, the same in every test."""
    return torch.randint(3, VOCAB_SIZE, (2, 24), generator=torch.Generator().manual_seed(7))
