"""Loading what a run left in `final/`: a full model by transformers, an adapter on its base by peft.

transformers can load an adapter directory too, but (5.23 with peft 0.21) it drops the magnitudes of DoRA with a warning
and computes something else.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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
    with explain_load_errors(directory):
        model: Any = load_whole(read_base(directory) if is_adapter else str(directory), dtype=dtype, **kwargs)
        if is_adapter:
            # in the type it was saved in, as it was trained: peft would turn 16-bit adapters to float32
            model = put_adapter(model, directory, autocast_adapter_dtype=False)
            take_generation_config(model.get_base_model(), directory)
    if in_4bit:
        prepare_4bit(model)  # repacked, layers of some widths fail, and all others round otherwise than in training
    return (model if "device_map" in kwargs else model.to(device)).eval()


@contextmanager
def explain_load_errors(directory: Path) -> Iterator[None]:
    """Has what cannot be loaded from `directory` end in one line."""
    try:
        yield
    except UserError:
        raise
    except LOAD_ERRORS as error:
        text = " ".join(str(error).split())
        if "ignore_mismatched_sizes" in text:
            text = "its weights have other shapes than its config says"
        raise UserError(f"{directory}: cannot be loaded: {text[:300]} ({type(error).__name__})") from error


def load_whole(name: str, **kwargs: Any) -> PreTrainedModel:
    """A causal model with all its weights. Raises UserError where some are missing, which transformers would draw."""
    model, report = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
        name, output_loading_info=True, **kwargs
    )
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{name}: lacks {len(missing)} weights of {type(model).__name__}, first {missing[0]!r}")
    return model


def read_base(directory: Path) -> str:
    """Name or path of the base of the adapter in `directory`. Raises UserError for one that it cannot be put on."""
    base = PeftConfig.from_pretrained(str(directory)).base_model_name_or_path
    if not base:
        raise UserError(f"{directory}: the adapter names no base model (trained on a model from scratch?)")
    if Path(base).is_absolute() and not Path(base).exists():
        raise UserError(f"{directory}: its base {base} is not there: put the path of it into adapter_config.json")
    if (Path(base) / "adapter_config.json").exists():
        raise UserError(f"{directory}: its base {base} is an adapter: merge that one first, and name the merged model")
    return base


def put_adapter(base: PreTrainedModel, directory: Path, **kwargs: Any) -> PeftModel:
    """The adapter of `directory` on its base. Raises UserError where it lacks weights, which peft only warns of."""
    if not any((directory / f"adapter_model.{kind}").exists() for kind in ("safetensors", "bin")):
        raise UserError(f"{directory}: holds no adapter_model.safetensors: the adapter was not saved whole")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            return PeftModel.from_pretrained(base, str(directory), **kwargs)
        except UserWarning as warning:
            text = " ".join(str(warning).split())[:200]
            raise UserError(f"{directory}: adapter_model.safetensors lacks weights: {text}") from None


def take_generation_config(base: Any, directory: Path) -> None:
    """Gives an adapter's base what the adapter was trained to stop at, where it says so."""
    if (directory / "generation_config.json").exists():
        base.generation_config = GenerationConfig.from_pretrained(str(directory))


def measure_difference(computed: torch.Tensor, reference: torch.Tensor) -> float:
    """Root mean square of the difference over the standard deviation of the reference."""
    return (computed - reference).square().mean().sqrt().item() / max(reference.std().item(), 1e-6)
