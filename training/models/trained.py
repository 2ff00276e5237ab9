"""Loading what a run left in `final/`: a full model by transformers, an adapter on its base by peft.

transformers can load an adapter directory too, but (5.23 with peft 0.21) it drops the magnitudes of DoRA with a warning
and computes something else.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

import training.models.minigpt  # noqa: F401  (registers MiniGPT with the Auto classes)
from data_prep.errors import UserError
from training.models.adapters import prepare_4bit, quantization_kwargs
from training.models.pretrained import LOAD_ERRORS

if TYPE_CHECKING:
    from training.config.sections import AdapterSection


def load_trained(
    directory: Path,
    *,
    device: torch.device,
    dtype: torch.dtype | str = "auto",
    adapter: AdapterSection | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel | PeftModel:
    """The model in `directory`, in eval mode on `device`. An adapter comes on its base, in 4 bit if `adapter` says so.

    Raises UserError when there is no model or it cannot be loaded.
    """
    if not any((directory / name).exists() for name in ("config.json", "adapter_config.json")):
        raise UserError(f"{directory}: no model here (neither config.json nor adapter_config.json)")
    kwargs: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    in_4bit = adapter is not None and adapter.load_in_4bit
    if adapter is not None and in_4bit:
        compute = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
        kwargs |= quantization_kwargs(adapter, compute, device.type)
    is_adapter = (directory / "adapter_config.json").exists()
    try:
        base = PeftConfig.from_pretrained(str(directory)).base_model_name_or_path if is_adapter else directory
        model: Any = AutoModelForCausalLM.from_pretrained(str(base), dtype=dtype, **kwargs)
        if is_adapter:
            # in the type it was saved in, as it was trained: peft would turn 16-bit adapters to float32
            model = PeftModel.from_pretrained(model, str(directory), autocast_adapter_dtype=False)
            take_generation_config(model.get_base_model(), directory)
    except LOAD_ERRORS as error:
        raise UserError(f"{directory}: cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    if in_4bit:
        prepare_4bit(model)  # repacked, layers of some widths fail, and all others round otherwise than in training
    return (model if "device_map" in kwargs else model.to(device)).eval()


def take_generation_config(base: Any, directory: Path) -> None:
    """Gives an adapter's base what the adapter was trained to stop at, where it says so."""
    if (directory / "generation_config.json").exists():
        base.generation_config = GenerationConfig.from_pretrained(str(directory))


def measure_difference(computed: torch.Tensor, reference: torch.Tensor) -> float:
    """Root mean square of the difference over the standard deviation of the reference."""
    return (computed - reference).square().mean().sqrt().item() / max(reference.std().item(), 1e-6)
