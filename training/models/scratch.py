"""A model config from a recipe's fields: MiniGPT, or any causal LM architecture of transformers by `model_type`.

Every field is checked against the architecture's own config class before anything is built, because transformers
takes unknown fields without a word and a typo would train the default shape.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig

from data_prep.errors import UserError
from data_prep.recipe.spelling import find_near

from .minigpt import MiniGPTConfig

if TYPE_CHECKING:
    from training.config.sections import ModelSection

# Keywords that transformers 5 moves into `rope_parameters`; valid for every config that has that field.
_ROPE_KEYWORDS = {"rope_theta", "rope_scaling", "partial_rotary_factor"}
# Set elsewhere in a recipe.
_OWNED_ELSEWHERE = {
    "dtype": "model.dtype",
    "torch_dtype": "model.dtype",
    "attn_implementation": "model.attn_implementation",
}
_READ = re.compile(r'getattr\((?:self\.)?config, "(\w+)"')


@dataclass(frozen=True)
class TokenizerFacts:
    """What a model must know about its tokenizer: number of ids (`len(tokenizer)`) and the special ids."""

    vocab_size: int
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None


def scratch_config(model: ModelSection, tokenizer: TokenizerFacts) -> PreTrainedConfig:
    """The config of a model that starts from random weights.

    `vocab_size` and the special token ids default to the tokenizer's. Raises UserError for an unknown architecture,
    field or value, and for a vocabulary that does not hold the tokenizer's ids.
    """
    fields: dict[str, Any] = dict(model.config)
    model_type = fields.pop("model_type", None) or "minigpt"
    if model.kind and model_type != model.kind:
        raise UserError(f"model.kind: {model.kind!r} contradicts model.config.model_type: {model_type!r}: keep one")
    config_class = _find_config_class(model_type)
    _check_fields(fields, config_class, model_type)
    for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"):
        fields.setdefault(name, getattr(tokenizer, name))
    if fields["vocab_size"] < tokenizer.vocab_size:
        raise UserError(
            f"model.config.vocab_size: {fields['vocab_size']} is less than the tokenizer's {tokenizer.vocab_size} ids: "
            "leave it out or raise it"
        )
    try:
        config = config_class(**fields)
    except (StrictDataclassError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")
        raise UserError(f"model.config: {reason}") from error
    _check_numbers(config)
    return config


def _check_numbers(config: PreTrainedConfig) -> None:
    """Most architectures build with any numbers here, and fail in the first forward pass."""
    text = config.get_text_config()
    if getattr(text, "num_hidden_layers", 1) < 1:
        raise UserError(f"model.config.num_hidden_layers: {text.num_hidden_layers}: must be 1 or more")
    heads, groups = getattr(text, "num_attention_heads", None), getattr(text, "num_key_value_heads", None)
    if isinstance(heads, int) and isinstance(groups, int) and (groups < 1 or heads % groups):
        raise UserError(
            f"model.config.num_key_value_heads: {groups} does not divide num_attention_heads: {heads} (set both)"
        )
    experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None)
    chosen = getattr(text, "num_experts_per_tok", None)
    if isinstance(experts, int) and isinstance(chosen, int) and chosen > experts > 0:
        raise UserError(f"model.config.num_experts_per_tok: {chosen} is more than the model's {experts} experts")


def _find_config_class(model_type: str) -> type[PreTrainedConfig]:
    if model_type == MiniGPTConfig.model_type:
        return MiniGPTConfig
    if model_type not in CONFIG_MAPPING:
        hint = _nearest(model_type, list(CONFIG_MAPPING))
        raise UserError(f"model.config.model_type: {model_type!r} is unknown to transformers{hint}")
    config_class = CONFIG_MAPPING[model_type]
    if config_class not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"model.config.model_type: {model_type!r} is not a causal language model")
    return config_class


def _check_fields(fields: dict[str, Any], config_class: type[PreTrainedConfig], model_type: str) -> None:
    known = {name for name in inspect.signature(config_class).parameters if name not in ("args", "kwargs")}
    known |= set(config_class.attribute_map)
    if "rope_parameters" in known:
        known |= _ROPE_KEYWORDS
    undeclared = _find_undeclared(config_class)
    for name, value in fields.items():
        if name in _OWNED_ELSEWHERE:
            raise UserError(f"model.config.{name}: set {_OWNED_ELSEWHERE[name]} instead")
        if name not in known | undeclared:
            hint = _nearest(name, sorted(known))
            raise UserError(f"model.config.{name}: {value!r}: {model_type} has no such field{hint}")


def _find_undeclared(config_class: type[PreTrainedConfig]) -> set[str]:
    """Fields that the model reads and its config class does not declare, `head_dim` of Qwen3-MoE among them."""
    file = Path(inspect.getfile(config_class))
    modeling = file.with_name(file.name.replace("configuration_", "modeling_"))
    return set(_READ.findall(modeling.read_text(encoding="utf-8"))) if modeling.is_file() else set()


def _nearest(name: str, known: list[str]) -> str:
    """The known name within a slip of the pen, else the only one that has all words of `name`, or empty."""
    words = name.lower().split("_")
    longer = [one for one in known if all(any(part.startswith(w) for part in one.split("_")) for w in words)]
    near = find_near(name, known) or (longer[0] if len(words) > 1 and len(longer) == 1 else None)
    return f", did you mean {near!r}?" if near else ""
