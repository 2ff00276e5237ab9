"""A SwiGLU MiniGPT as a stock `LlamaForCausalLM` directory with equal logits, for servers that know only Llama.

MiniGPT computes what Llama computes and names its weights as Llama does, so the weights are copied untouched and only
the config changes. Other activations have no Llama counterpart and are refused.
"""

from pathlib import Path

from transformers import AutoModelForCausalLM, LlamaConfig

from data_prep.errors import UserError

from .merging import check_saved, compute_probe_logits
from .minigpt import MiniGPTConfig, MiniGPTForCausalLM
from .trained import explain_load_errors, load_whole

# Fields that mean the same in both configs.
_SHARED_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "rope_parameters", "rms_norm_eps",
    "attention_dropout", "initializer_range", "tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip


def llama_config(config: MiniGPTConfig) -> LlamaConfig:
    """The Llama config of the same function; UserError when there is none."""
    if config.hidden_act != "swiglu":
        raise UserError(
            f"export to llama: hidden_act {config.hidden_act!r} cannot be said in Llama, whose MLP is SwiGLU: "
            "load the directory as it is, with trust_remote_code=True"
        )
    fields = {name: getattr(config, name) for name in _SHARED_FIELDS}
    return LlamaConfig(**fields, hidden_act="silu", attention_bias=False, mlp_bias=False)


def export_llama(source: Path, target: Path) -> None:
    """Writes the MiniGPT saved in `source` to `target` as a Llama model; the tokenizer is the caller's.

    Raises UserError when `source` holds no MiniGPT or one that Llama cannot express.
    """
    with explain_load_errors(source):
        model = load_whole(str(source), dtype="auto")
    assert isinstance(model, MiniGPTForCausalLM)
    llama = AutoModelForCausalLM.from_config(llama_config(model.config), dtype=model.dtype)
    llama.load_state_dict(model.state_dict())
    llama.generation_config = model.generation_config
    llama.save_pretrained(target)
    check_saved(target, compute_probe_logits(model), f"the MiniGPT in {source}")
