"""Merged adapters compute what base and adapter compute, on tied weights too, or nothing is written."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen2Config

from data_prep.errors import UserError
from tests.models.tiny import SHAPE, build_tiny, tiny_minigpt
from training.export import export
from training.models import merging

# Of an adapter, and whether embedding and head are still one weight when it is merged.
ADAPTERS: dict[str, tuple[dict[str, Any], bool]] = {
    "head": ({"target_modules": ["lm_head"]}, False),
    "head_dora": ({"target_modules": ["lm_head", "q_proj"], "use_dora": True}, False),
    "embedding": ({"target_modules": ["embed_tokens", "q_proj"]}, False),
    "both": ({"target_modules": ["embed_tokens", "lm_head"]}, False),
    "head_of_its_own": ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False),
    "both_of_their_own": ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}, False),
    "tokens": ({"target_modules": ["q_proj"], "trainable_token_indices": [3, 4]}, True),
    "layers": ({"target_modules": "all-linear", "use_rslora": True}, True),
}


@pytest.fixture(params=["qwen2", "minigpt"])
def tied_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    fields: dict[str, Any] = {"tie_word_embeddings": True, "initializer_range": 0.2}
    torch.manual_seed(0)
    if request.param == "minigpt":
        model = tiny_minigpt(**fields)
    else:
        model = AutoModelForCausalLM.from_config(Qwen2Config(**(SHAPE | fields)))
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def save_adapter(base: Path, options: dict[str, Any]) -> Path:
    """An adapter on `base` whose weights are all moved, as training does."""
    model: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", r=4, **options)
    )
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(base.parent / "adapter")
    return base.parent / "adapter"


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_merged_model_is_base_and_adapter(name: str, tied_dir: Path, token_ids: torch.Tensor) -> None:
    options, stays_tied = ADAPTERS[name]
    adapter, out = save_adapter(tied_dir, options), tied_dir.parent / "out"
    GenerationConfig(eos_token_id=[5, 2]).save_pretrained(adapter)
    export(adapter, out, "merged")
    base = AutoModelForCausalLM.from_pretrained(tied_dir)
    adapted, merged = PeftModel.from_pretrained(base, str(adapter)).eval(), AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        torch.testing.assert_close(merged(token_ids).logits, adapted(token_ids).logits, atol=1e-4, rtol=1e-4)
    assert merged.config.tie_word_embeddings == stays_tied
    assert merged.generation_config.eos_token_id == [5, 2]


@pytest.mark.parametrize("tied_dir", ["qwen2"], indirect=True)
def test_another_model_is_refused_and_removed(
    tied_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, out = save_adapter(tied_dir, {"target_modules": ["lm_head"]}), tied_dir.parent / "out"
    monkeypatch.setattr(merging, "_untie", lambda base: None)
    with pytest.raises(UserError, match=r"out: the exported model computes other logits than base and ada"):
        export(adapter, out, "merged")
    assert not out.exists()


def test_a_recipe_s_adapter_on_a_tied_head_is_told(
    minigpt_dir: Path, qwen_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="redline.models"):
        build_tiny({"path": str(qwen_dir)}, {"method": "lora", "target_modules": ["lm_head"]})  # not tied
        build_tiny({"path": str(minigpt_dir)}, {"method": "lora"})
        assert "are tied" not in caplog.text
        build_tiny({"path": str(minigpt_dir)}, {"method": "lora", "target_modules": ["lm_head"]})
    assert "adapter.target_modules: embedding and head are tied" in caplog.text
