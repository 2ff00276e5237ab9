"""What a run left is loaded as it was trained: in 4 bits of any width, stopping at the adapter's own tokens."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen2Config

from tests.models.tiny import SHAPE, build_tiny
from training.config.sections import AdapterSection
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
    model = build_tiny({"path": str(tmp_path / "base")}, QLORA, dtype=dtype).eval()
    model.save_pretrained(tmp_path / "final")
    GenerationConfig(eos_token_id=[5, 2]).save_pretrained(tmp_path / "final")
    adapter = AdapterSection.model_validate(QLORA)
    loaded = load_trained(tmp_path / "final", device=torch.device("cpu"), dtype=dtype, adapter=adapter)
    with torch.no_grad():
        torch.testing.assert_close(loaded(token_ids).logits, model(token_ids).logits, atol=0, rtol=0)
    assert find_stops(loaded) == [5, 2]
