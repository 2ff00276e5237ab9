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

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from data_prep.errors import UserError

from .known_architectures import KNOWN_ARCHITECTURES

if TYPE_CHECKING:
    from training.config.sections import ModelSection

logger = logging.getLogger("redline.models")


def load_config(model: ModelSection, *, planning: bool = False) -> PreTrainedConfig:
    """Config of `model.path`. Raises UserError when it is neither a model directory nor a reachable hub name."""
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
    except (OSError, ValueError) as error:
        raise _load_error(model, error) from error


def load_pretrained(model: ModelSection, **kwargs: Any) -> PreTrainedModel:
    """The model at `model.path` with its weights; `kwargs` go to `from_pretrained` (dtype, attention, quantization).

    Under ZeRO-3 transformers loads it already partitioned. Raises UserError when it cannot be found or read, is an
    adapter, or lacks weights.
    """
    load_config(model)  # tells a bad path apart from bad weights
    try:
        loaded, report = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            resolve_path(model), **_origin(model), output_loading_info=True, **kwargs
        )
    except (OSError, ValueError) as error:
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
    if not (path / "config.json").exists():
        raise UserError(f"model.path: {model.path!r} holds no config.json: give a directory in Hugging Face format")
    return str(path)


def _origin(model: ModelSection) -> dict[str, Any]:
    return {"revision": model.revision or "main", "trust_remote_code": model.trust_remote_code}


def _load_error(model: ModelSection, error: Exception) -> UserError:
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return UserError(f"model.path: {model.path!r} brings its own code: set model.trust_remote_code: true to run it")
    if Path(str(model.path)).expanduser().exists():
        return UserError(f"model.path: {model.path!r} cannot be loaded: {text[:300]}")
    return UserError(
        f"model.path: {model.path!r} is no directory here and could not be had from the hub ({text[:160]}): "
        "give a local directory, or check name, network and HF_HUB_OFFLINE"
    )
