"""MiniGPT: a decoder-only transformer as a Hugging Face model.

RMSNorm before each block, RoPE, grouped-query attention, MLP of any activation in `activations.py`, tied head. With
`swiglu` it computes exactly what `LlamaForCausalLM` computes and its weights carry Llama's names, so exporting is a
change of config (`training/models/llama_export.py`).

Guarantees
- Attention goes through HF's `AttentionInterface` and masks through `create_causal_mask`: eager, sdpa, flex, flash
  and any registered implementation work, and packed rows (position ids that restart per document) attend only within
  a document. HF finds the documents in the position ids only when there is no KV cache, so no cache is made while
  training or while a loss is asked for.
- Weights are set only in `_init_weights`, so meta-device, `from_pretrained` and ZeRO-3 builds are all right. Linear
  layers that write into the residual stream start with std / sqrt(2 * num_layers), so that the stream's variance does
  not grow with depth (GPT-2).
- Accepts `num_items_in_batch`: the Trainer then normalises the loss by tokens over the whole global batch.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.utils import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .activations import ACTIVATIONS, GATED, XIELU
from .configuration_minigpt import MiniGPTConfig
from .versions import (
    ALL_ATTENTION_FUNCTIONS,
    capture_outputs,
    create_causal_mask,
    init,
    merge_with_config_defaults,
)


class MiniGPTRMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension; statistics in float32 (arXiv 1910.07467)."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


class MiniGPTRotaryEmbedding(nn.Module):
    """cos and sin of the rotary angles, (batch, seq_len, head_dim) each (arXiv 2104.09864).

    Attribute and method names are those that HF's `_init_weights` and rope scaling look for.
    """

    def __init__(self, config: MiniGPTConfig) -> None:
        super().__init__()
        self.config = config
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = str(dict(config.rope_parameters or {})["rope_type"])
        if self.rope_type == "default":
            inv_freq, self.attention_scaling = self.compute_default_rope_parameters(config)
        else:
            inv_freq, self.attention_scaling = ROPE_INIT_FUNCTIONS[self.rope_type](config, None)
        self.inv_freq = nn.Buffer(inv_freq, persistent=False)
        self.original_inv_freq = nn.Buffer(inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: MiniGPTConfig, **_: Any) -> tuple[torch.Tensor, float]:
        """Frequencies theta**(-2i / head_dim), (head_dim / 2,), and the scale of cos and sin (1)."""
        theta: Any = dict(config.rope_parameters or {})["rope_theta"]
        assert config.head_dim  # set by the config's __post_init__
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
        return 1.0 / (theta**exponents), 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = position_ids[..., None].float() * self.inv_freq.float()
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates pairs (i, i + head_dim/2) of `x` (batch, heads, seq_len, head_dim) by the angles of each position."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]


def eager_attention_forward(  # noqa: PLR0913  signature of HF attention functions
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain attention, the reference for the others: query (batch, heads, seq_len, head_dim), key and value with
    num_key_value_heads heads, additive mask; returns (batch, seq_len, heads, head_dim) and the probabilities."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    probabilities = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    return (probabilities @ value).transpose(1, 2).contiguous(), probabilities


class MiniGPTAttention(nn.Module):
    """Grouped-query causal self-attention."""

    def __init__(self, config: MiniGPTConfig, layer_idx: int) -> None:
        super().__init__()
        head_dim, heads, kv_heads = config.head_dim, config.num_attention_heads, config.num_key_value_heads
        assert head_dim and kv_heads  # set by the config's __post_init__
        self.config, self.layer_idx, self.head_dim = config, layer_idx, head_dim
        self.num_key_value_groups = heads // kv_heads  # read by HF's attention functions
        self.scaling = head_dim**-0.5
        self.is_causal = True
        self.q_proj = nn.Linear(config.hidden_size, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_heads * head_dim, bias=False)
        self.o_proj = residual_linear(heads * head_dim, config.hidden_size)

    def forward(
        self,
        x: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch, seq_len, _ = x.shape
        query, key, value = (
            projection(x).view(batch, seq_len, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation or "eager", eager_attention_forward
        )
        dropout = self.config.attention_dropout if self.training else 0.0
        out, probabilities = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(out.reshape(batch, seq_len, -1)), probabilities


class MiniGPTMLP(nn.Module):
    """down(act(gate(x)) * up(x)) when gated, else down(act(up(x)))."""

    def __init__(self, config: MiniGPTConfig) -> None:
        super().__init__()
        assert config.intermediate_size
        if config.hidden_act in GATED:
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        else:
            self.gate_proj = None
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = residual_linear(config.intermediate_size, config.hidden_size)
        self.act_fn = ACTIVATIONS[config.hidden_act]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.gate_proj is None:
            return self.down_proj(self.act_fn(self.up_proj(x)))
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def residual_linear(in_features: int, out_features: int) -> nn.Linear:
    """A Linear whose output is added to the residual stream; marked for `_init_weights`.

    The mark sits on the layer because HF skips `_init_weights` for modules without weights of their own when the
    model's code lives outside transformers.
    """
    linear = nn.Linear(in_features, out_features, bias=False)
    linear.__dict__["writes_residual"] = True
    return linear


class MiniGPTDecoderLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + mlp(norm(x)); the unit of gradient checkpointing."""

    def __init__(self, config: MiniGPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = MiniGPTAttention(config, layer_idx)
        self.mlp = MiniGPTMLP(config)
        self.input_layernorm = MiniGPTRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = MiniGPTRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: torch.Tensor, **kwargs) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), **kwargs)[0]
        return x + self.mlp(self.post_attention_layernorm(x))


class MiniGPTPreTrainedModel(PreTrainedModel):
    """What HF needs to know about the family."""

    config_class = MiniGPTConfig
    config: MiniGPTConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MiniGPTDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": MiniGPTDecoderLayer, "attentions": MiniGPTAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if getattr(module, "writes_residual", False):
            std = self.config.initializer_range / (2 * self.config.num_hidden_layers) ** 0.5
            init.normal_(module.weight, mean=0.0, std=std)  # pyright: ignore[reportArgumentType]
        elif isinstance(module, XIELU):
            for name, value in XIELU.initial_values().items():
                init.constant_(getattr(module, name), value)
        else:
            super()._init_weights(module)  # Linear and Embedding normal, norms one, rotary buffers


class MiniGPTModel(MiniGPTPreTrainedModel):
    """Token ids to the last hidden states, (batch, seq_len, hidden_size)."""

    def __init__(self, config: MiniGPTConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MiniGPTDecoderLayer(config, idx) for idx in range(config.num_hidden_layers))
        self.norm = MiniGPTRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = MiniGPTRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Last hidden states (batch, seq_len, hidden_size). Raises ValueError unless one input is given."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None and not self.training:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(seen, seen + x.shape[1], device=x.device)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        position_embeddings = self.rotary_emb(x, position_ids)
        for layer in self.layers:
            x = layer(
                x,
                attention_mask=mask,
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x), past_key_values=past_key_values)


class MiniGPTForCausalLM(MiniGPTPreTrainedModel, GenerationMixin):
    """MiniGPT with the language-model head, tied to the embedding unless the config says otherwise."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: MiniGPTConfig) -> None:
        super().__init__(config)
        self.model = MiniGPTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(  # noqa: PLR0913  signature of HF causal models
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (batch, seq_len, vocab_size) of the last `logits_to_keep` positions (0: all, tensor: these indices).

        With `labels` (batch, seq_len; -100 carries no loss; shifted here) also the mean cross-entropy in nats per
        token, or its sum divided by `num_items_in_batch` where that is given.
        """
        if labels is not None and use_cache is None:
            use_cache = False
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        assert hidden is not None
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, keep, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["MiniGPTForCausalLM", "MiniGPTModel", "MiniGPTPreTrainedModel"]
