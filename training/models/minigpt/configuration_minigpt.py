"""Shape of a MiniGPT. The defaults are the quickstart model: 11.0 M parameters at a vocabulary of 8192."""

from .activations import ACTIVATIONS, GATED
from .versions import PreTrainedConfig, RopeParameters, strict


@strict
class MiniGPTConfig(PreTrainedConfig):
    """Fields as in Llama, except `hidden_act`, which is a name of `activations.ACTIVATIONS`.

    `intermediate_size` left out means 8/3 of `hidden_size` for a gated activation and 4 times for the others, rounded
    up to a multiple of 64: equal weights in the MLP, so activations compare at equal size. `rope_theta` may be given
    as a keyword; it is kept in `rope_parameters`, where transformers 5 wants it.

    Raises ValueError for head counts that do not divide, an odd `head_dim` or an unknown `hidden_act`.
    """

    model_type = "minigpt"
    keys_to_ignore_at_inference = ["past_key_values"]
    default_theta = 10_000.0

    vocab_size: int = 8192
    hidden_size: int = 384
    intermediate_size: int | None = None
    num_hidden_layers: int = 5
    num_attention_heads: int = 6
    num_key_value_heads: int | None = 2
    head_dim: int | None = None
    hidden_act: str = "swiglu"
    max_position_embeddings: int = 2048
    rope_parameters: RopeParameters | dict | None = None
    rms_norm_eps: float = 1e-6
    attention_dropout: int | float = 0.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.intermediate_size is None:
            width = self.hidden_size * 8 / 3 if self.hidden_act in GATED else self.hidden_size * 4
            self.intermediate_size = -(-int(width) // 64) * 64
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Called by `@strict` after construction."""
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act: {self.hidden_act!r} is not one of {', '.join(ACTIVATIONS)}")
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if not kv_heads or heads % kv_heads:
            raise ValueError(f"num_attention_heads: {heads} is not a multiple of num_key_value_heads: {kv_heads}")
        if not self.head_dim or self.head_dim % 2:
            raise ValueError(f"head_dim: {self.head_dim} must be even and positive (RoPE rotates pairs)")


__all__ = ["MiniGPTConfig"]
