"""Loading `model.path`: a local directory or a hub name, with errors that say which of the two went wrong.

Guarantees
- Weights that the checkpoint lacks are an error: transformers would fill them with random numbers and a warning.
- A vocabulary smaller than the tokenizer's is grown (to a multiple of 64, new rows drawn around the mean of the old
  ones) and logged when the whole model trains; under LoRA it is an error, since new rows would stay frozen and an
  adapter does not save them. A larger vocabulary is left alone: Qwen's is padded.
- Planning (`load_config` with `planning=True`) never waits for the hub where the shape is known: local directory, hub
  cache, `known_architectures`, and only then the hub.
"""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from data_prep.errors import UserError

from .known_architectures import KNOWN_ARCHITECTURES

if TYPE_CHECKING:
    from training.config.sections import ModelSection

logger = logging.getLogger("redline.models")

# What a checkpoint can be wrong in: files, fields of its config, shapes, packages that it needs.
LOAD_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    RuntimeError,
    ImportError,
    SafetensorError,
    StrictDataclassError,
)


def load_config(model: ModelSection, *, planning: bool = False) -> PreTrainedConfig:
    """Config of `model.path`. Raises UserError when it is neither a model directory nor a reachable hub name."""
    config = _load_config(model, planning)
    _check_trainable(model, config)
    return config


def _load_config(model: ModelSection, planning: bool) -> PreTrainedConfig:
    path = resolve_path(model)
    if planning and path in KNOWN_ARCHITECTURES:
        try:
            return AutoConfig.from_pretrained(path, local_files_only=True, revision=model.revision or "main")
        except OSError:
            logger.info("%s is not in the hub cache: planning with its published shape", path)
            fields = dict(KNOWN_ARCHITECTURES[path])
            return AutoConfig.for_model(fields.pop("model_type"), **fields)
    try:
        return AutoConfig.from_pretrained(path, **_origin(model))
    except LOAD_ERRORS as error:
        raise _load_error(model, error) from error


def _check_trainable(model: ModelSection, config: PreTrainedConfig) -> None:
    """A causal language model, whose weights are numbers that can be trained."""
    what = f"model.path: {model.path!r}"
    remote = getattr(config, "auto_map", None) or {}
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and "AutoModelForCausalLM" not in remote:
        raise UserError(f"{what} is a {config.model_type}, no causal language model: give one that continues text")
    takes_both = "is_decoder" in inspect.signature(type(config)).parameters and not hasattr(config, "rope_parameters")
    if takes_both and not getattr(config, "is_decoder", True):
        raise UserError(
            f"{what} is an encoder ({config.model_type}), which sees later tokens: give a model of causal text"
        )
    quantization: Any = getattr(config, "quantization_config", None)
    if quantization:
        as_dict = quantization if isinstance(quantization, dict) else quantization.to_dict()
        method = getattr(as_dict.get("quant_method"), "value", as_dict.get("quant_method"))
        raise UserError(
            f"{what} is quantised ({method}), and such weights are not trained: give the checkpoint it was made from; "
            "adapter.load_in_4bit: true holds that one in 4 bits"
        )


def load_pretrained(model: ModelSection, **kwargs: Any) -> PreTrainedModel:
    """The model at `model.path` with its weights; `kwargs` go to `from_pretrained` (dtype, attention, quantization).

    Under ZeRO-3 transformers loads it already partitioned. Raises UserError when it cannot be found or read, is an
    adapter, or lacks weights. Load the config before: it tells a bad path apart from bad weights.
    """
    try:
        loaded, report = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            resolve_path(model), **_origin(model), output_loading_info=True, **kwargs
        )
    except LOAD_ERRORS as error:
        raise _load_error(model, error) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"model.path: {model.path!r} lacks {len(missing)} weights of {type(loaded).__name__}, "
            f"first {missing[0]!r}: is it a causal language model?"
        )
    return loaded


def fit_vocabulary(model: PreTrainedModel, vocab_size: int, *, frozen: bool) -> None:
    """Grows the embedding to hold `vocab_size` ids if it must; UserError when the embedding is `frozen`."""
    rows = model.config.get_text_config().vocab_size
    if rows >= vocab_size:
        return
    if frozen:
        raise UserError(
            f"tokenizer: {vocab_size} ids but model.path has {rows} embeddings, and an adapter trains and saves none: "
            "use the model's own tokenizer, or adapter.method: none"
        )
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    model.resize_token_embeddings(vocab_size, pad_to_multiple_of=64, mean_resizing=not on_meta)
    grown = model.config.get_text_config().vocab_size
    logger.info("vocabulary: embeddings grown from %d to %d rows for %d token ids", rows, grown, vocab_size)


def resolve_path(model: ModelSection) -> str:
    """`model.path` with `~` expanded, as transformers wants it; UserError for a directory that holds no model."""
    assert model.path
    path = Path(model.path).expanduser()
    if not path.exists():
        looks_local = model.path.startswith(("/", ".", "~")) or model.path.count("/") > 1
        if looks_local:
            raise UserError(f"model.path: {model.path!r} does not exist")
        return model.path
    if (path / "adapter_config.json").exists():
        raise UserError(
            f"model.path: {model.path!r} is an adapter: merge it first with "
            f"python -m training.export {model.path} OUT --format merged"
        )
    if path.is_file():
        raise UserError(f"model.path: {model.path!r} is a file: give the directory of a model in Hugging Face format")
    if not (path / "config.json").exists():
        raise UserError(f"model.path: {model.path!r} holds no config.json: give a directory in Hugging Face format")
    return str(path)


def _origin(model: ModelSection) -> dict[str, Any]:
    return {"revision": model.revision or "main", "trust_remote_code": model.trust_remote_code}


def _load_error(model: ModelSection, error: Exception) -> UserError:
    text = " ".join(str(error).split())
    if "ignore_mismatched_sizes" in text:
        text = "its weights have other shapes than its config.json says"
    if "trust_remote_code" in text:
        return UserError(f"model.path: {model.path!r} brings its own code: set model.trust_remote_code: true to run it")
    if Path(str(model.path)).expanduser().exists():
        return UserError(f"model.path: {model.path!r} cannot be loaded: {text[:300]}")
    return UserError(
        f"model.path: {model.path!r} is no directory here and could not be had from the hub ({text[:160]}): "
        "give a local directory, or check name, network and HF_HUB_OFFLINE"
    )
