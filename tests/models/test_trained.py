"""What a run left is loaded as it was trained: in 4 bits of any width, stopping at the adapter's own tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen2Config

from data_prep.errors import UserError
from tests.models.tiny import SHAPE, build_tiny, tiny_minigpt
from training.config.sections import AdapterSection
from training.export import export
from training.models.trained import load_trained
from training.models.writing import find_stops

QLORA = {"method": "lora", "r": 4, "load_in_4bit": True}


@pytest.mark.parametrize("width", [96, 100, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_4bit_adapter_comes_back_with_equal_logits(
    width: int, dtype: torch.dtype, tmp_path: Path, token_ids: torch.Tensor
) -> None:
    """On CPUs with AVX512-BF16 bitsandbytes repacks weights in eval mode, and fails for widths of no multiple of 64."""
    torch.manual_seed(0)
    config = Qwen2Config(**(SHAPE | {"intermediate_size": width, "initializer_range": 0.2}))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    model = build_tiny({"path": str(tmp_path / "base"), "attn_implementation": "sdpa"}, QLORA, dtype=dtype).eval()
    model.save_pretrained(tmp_path / "final")
    GenerationConfig(eos_token_id=[5, 2]).save_pretrained(tmp_path / "final")
    adapter = AdapterSection.model_validate(QLORA)
    loaded = load_trained(tmp_path / "final", device=torch.device("cpu"), dtype=dtype, adapter=adapter)
    with torch.no_grad():
        torch.testing.assert_close(loaded(token_ids).logits, model(token_ids).logits, atol=0, rtol=0)
    assert find_stops(loaded) == [5, 2]


@pytest.fixture
def adapter_dir(tmp_path: Path) -> Path:
    tiny_minigpt().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
    model: Any = get_peft_model(base, lora)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def lose_a_weight(file: Path) -> None:
    weights = load_file(file)
    del weights[min(weights)]
    save_file(weights, file, metadata={"format": "pt"})


def name_base(file: Path, base: Path) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(base)}))


# What is done to an adapter or its base, and what is said. peft and transformers take lost weights with a warning.
DAMAGES: dict[str, tuple[Any, str]] = {
    "adapter_config": (lambda path: (path / "adapter_config.json").write_text("{"), "cannot be loaded: Expecting"),
    "no_adapter": (lambda path: (path / "adapter_model.safetensors").unlink(), "holds no adapter_model.safetensors"),
    "half_an_adapter": (lambda path: lose_a_weight(path / "adapter_model.safetensors"), "lacks weights: Found missing"),
    "cut_off": (lambda path: (path / "adapter_model.safetensors").write_bytes(b"x"), "cannot be loaded: .*Safetensor"),
    "no_base": (lambda path: name_base(path / "adapter_config.json", path / "gone"), "gone is not there"),
    "on_an_adapter": (lambda path: name_base(path / "adapter_config.json", path), "is an adapter: merge that one"),
    "half_a_base": (lambda path: lose_a_weight(path.parent / "base" / "model.safetensors"), "lacks 2 weights of Mini"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_adapter_is_told_in_one_line(damage: str, adapter_dir: Path) -> None:
    spoil, message = DAMAGES[damage]
    spoil(adapter_dir)
    out = adapter_dir.parent / "out"
    loads = (lambda: load_trained(adapter_dir, device=torch.device("cpu")), lambda: export(adapter_dir, out, "merged"))
    for load in loads:
        with pytest.raises(UserError, match=message) as error:
            load()
        assert "\n" not in str(error.value)
    assert not out.exists()
