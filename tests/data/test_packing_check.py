"""The check passes where documents are apart, in each type, and stops where they are not."""

from typing import Any

import pytest
import torch
from transformers import (
    AttentionInterface,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from data_prep.errors import UserError
from training.data.collator import VARLEN_KEYS
from training.data.packing_check import check_packing, measure_crosstalk
from training.models.minigpt import MiniGPTConfig, MiniGPTForCausalLM

MODELS: dict[str, Any] = {
    "minigpt": (MiniGPTForCausalLM, MiniGPTConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "llama": (LlamaForCausalLM, LlamaConfig),
}


def ignore_documents(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
    """What an attention does that knows of no documents: all earlier tokens of the row are seen."""
    return sdpa_attention_forward(module, query, key, value, None, **{**kwargs, "is_causal": True})


def attend_by_boundaries(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
    """A plain reading of the collator's keys, as a kernel of variable length reads them: one flat row."""
    assert attention_mask is None and kwargs["max_length_q"] == 12
    outputs = []
    flat = [tensor.transpose(0, 1).flatten(1, 2)[None] for tensor in (query, key, value)]
    for begin, end in zip(kwargs["cu_seq_lens_q"][:-1].tolist(), kwargs["cu_seq_lens_k"][1:].tolist(), strict=True):
        queries, keys, values = (tensor[:, :, begin:end] for tensor in flat)
        attended = sdpa_attention_forward(
            module, queries, keys, values, None, is_causal=True, scaling=kwargs["scaling"]
        )
        outputs.append(attended[0])
    return torch.cat(outputs, dim=1).reshape(query.shape[0], query.shape[2], *outputs[0].shape[2:]), None


def varlen_or_plain(module: Any, *tensors: Any, **kwargs: Any) -> Any:
    attend = attend_by_boundaries if VARLEN_KEYS[0] in kwargs else ignore_documents
    return attend(module, *tensors, **kwargs)


AttentionInterface.register("ignores_documents", ignore_documents)
AttentionInterface.register("varlen_by_hand", varlen_or_plain)


def crosstalk(name: str, attention: str, dtype: torch.dtype, varlen: bool = True) -> float:
    model_class, config_class = MODELS[name]
    torch.manual_seed(0)
    config = config_class(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, attn_implementation=attention,
    )  # fmt: skip
    model: PreTrainedModel = model_class(config).eval()

    def forward(batch: dict[str, Any]) -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            return model(**batch, use_cache=False).logits  # pyright: ignore[reportCallIssue]

    return measure_crosstalk(forward, vocab_size=256, varlen=varlen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", list(MODELS))
def test_passes_where_documents_are_apart(name: str, attention: str, dtype: torch.dtype):
    check_packing(crosstalk(name, attention, dtype), dtype, attention)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", list(MODELS))
def test_stops_where_they_are_not(name: str, dtype: torch.dtype):
    with pytest.raises(UserError, match=r"attention 'ignores_documents'.*see each other.*data\.packing: none"):
        check_packing(crosstalk(name, "ignores_documents", dtype), dtype, "ignores_documents")


@pytest.mark.parametrize("name", list(MODELS))
def test_the_boundaries_of_the_collator_reach_the_attention_and_are_right(name: str):
    """Rows flatten to one, padding included; without the keys the same attention is caught."""
    check_packing(crosstalk(name, "varlen_by_hand", torch.float32), torch.float32, "varlen_by_hand")
    with pytest.raises(UserError):
        check_packing(crosstalk(name, "varlen_by_hand", torch.float32, varlen=False), torch.float32, "varlen_by_hand")


def test_a_loss_that_is_no_number_stops_too():
    with pytest.raises(UserError):
        check_packing(float("nan"), torch.float32, "sdpa")
