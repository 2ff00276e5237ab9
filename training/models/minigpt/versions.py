"""What MiniGPT takes from transformers, by the names of version 5, for version 4.57 as well.

A saved MiniGPT carries its code, and servers may still have transformers 4. Training needs version 5.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import masking_utils, modeling_utils

if TYPE_CHECKING or int(transformers.__version__.split(".")[0]) >= 5:
    from huggingface_hub.dataclasses import strict
    from transformers import PreTrainedConfig
    from transformers import initialization as init
    from transformers.masking_utils import create_causal_mask
    from transformers.modeling_rope_utils import RopeParameters
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.utils.generic import merge_with_config_defaults
    from transformers.utils.output_capturing import capture_outputs
else:
    from torch.nn import init

    RopeParameters = dict

    class PreTrainedConfig(transformers.PretrainedConfig):
        """Class fields as keyword arguments, then `__post_init__` and `validate_architecture`, as in version 5."""

        def __init__(self, **kwargs: Any) -> None:
            for name in type(self).__dict__.get("__annotations__", {}):
                setattr(self, name, kwargs.pop(name, getattr(type(self), name)))
            self.__post_init__(**kwargs)
            self.validate_architecture()

        def __post_init__(self, **kwargs: Any) -> None:
            theta = kwargs.get("rope_theta", type(self).default_theta)
            self.rope_parameters = self.rope_parameters or {"rope_type": "default", "rope_theta": theta}
            special = ("pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings")
            super().__init__(**kwargs, **{name: getattr(self, name) for name in special})

    def create_causal_mask(inputs_embeds: torch.Tensor, past_key_values: Any = None, **kwargs: Any) -> Any:
        """Version 4 asks for the positions in the cache, and calls the embeddings otherwise."""
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        positions = torch.arange(seen, seen + inputs_embeds.shape[1], device=inputs_embeds.device)
        kwargs |= {"input_embeds": inputs_embeds, "past_key_values": past_key_values, "cache_position": positions}
        return masking_utils.create_causal_mask(**kwargs)

    def strict(config_class: type) -> type:
        """Version 4 checks no types."""
        return config_class

    def merge_with_config_defaults(forward: Callable[..., Any]) -> Callable[..., Any]:
        """Version 4 gives `use_cache` from the config in `generate`."""
        return forward

    def capture_outputs(forward: Callable[..., Any]) -> Callable[..., Any]:
        """Hidden states and attentions of each layer are for version 5."""
        return forward

    class _Functions:
        def get_interface(self, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
            return default if name == "eager" else modeling_utils.ALL_ATTENTION_FUNCTIONS[name]

    ALL_ATTENTION_FUNCTIONS = _Functions()


__all__ = [
    "ALL_ATTENTION_FUNCTIONS",
    "PreTrainedConfig",
    "RopeParameters",
    "capture_outputs",
    "create_causal_mask",
    "init",
    "merge_with_config_defaults",
    "strict",
]
