"""Published shapes of the models that the shipped recipes name, so that a recipe can be planned without the hub.

Only `build_model(..., meta=True)` reads this, for a name that is not in the local hub cache. Weights never come from
here. Source: `config.json` of each repository on huggingface.co (Qwen2.5 release of September 2024); the parameter
counts that follow from them are the published ones (494,032,768 and 7,615,616,512), held by a test.
"""

from typing import Any

_QWEN2_5: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "use_sliding_window": False,
    "bos_token_id": 151643,
}
_QWEN2_5_0_5B = _QWEN2_5 | {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
_QWEN2_5_7B = _QWEN2_5 | {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}

KNOWN_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-0.5B": _QWEN2_5_0_5B | {"eos_token_id": 151643},
    "Qwen/Qwen2.5-0.5B-Instruct": _QWEN2_5_0_5B | {"eos_token_id": 151645},
    "Qwen/Qwen2.5-7B": _QWEN2_5_7B | {"eos_token_id": 151643, "max_position_embeddings": 131072},
    "Qwen/Qwen2.5-7B-Instruct": _QWEN2_5_7B | {"eos_token_id": 151645, "max_position_embeddings": 32768},
}
