"""LoRA through peft, on full-precision or 4-bit NF4 base weights (QLoRA, arXiv 2305.14314).

Guarantees
- Adapter weights are created in float32 whatever the base is in; DeepSpeed casts them to its own dtype and keeps
  float32 masters. The base is frozen; what is not quantised (norms, embeddings, head) stays in the compute dtype.
  peft's `prepare_model_for_kbit_training` would turn those to float32 (2 GiB more for Qwen2.5-7B), and DeepSpeed
  would turn them back; norms compute in float32 anyway.
- Frozen weights get no gradients computed, and nothing is differentiated below the first adapter, with activation
  checkpointing as well: what transformers (5.23) adds for it, the gradient of the embeddings' output, is taken away.
- A 4-bit weight is unpacked once in the forward pass and once in the backward pass (once more where a layer is
  recomputed), and let go of after its product: one lives at a time.
- 4-bit weights stay trainable after an evaluation on a CPU. With AVX512-BF16 bitsandbytes repacks them on the first
  forward in eval mode into a format whose matmul has no backward: later steps would train without the gradients that
  flow through the base, and say nothing. `prepare_4bit` turns the repacking off.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.pytorch_utils import Conv1D

from data_prep.errors import UserError

if TYPE_CHECKING:
    from training.config.sections import AdapterSection

logger = logging.getLogger("redline.models")


@dataclass(frozen=True)
class TrainableShare:
    """Numbers of parameters, 4-bit ones counted as elements of the weight they stand for, tied ones once."""

    trainable: int
    total: int

    def __str__(self) -> str:
        share = 100 * self.trainable / self.total
        return f"trainable parameters: {self.trainable:,} of {self.total:,} ({share:.2f} %)"


def trainable_share(model: nn.Module) -> TrainableShare:
    """Counts the parameters of `model`; right under ZeRO-3 and on the meta device too."""
    sizes = [(num_elements(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return TrainableShare(sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes))


def num_elements(parameter: nn.Parameter) -> int:
    """Elements of the weight that `parameter` stands for: unpacked from 4 bit, gathered from ZeRO-3 partitions."""
    quant_state = getattr(parameter, "quant_state", None)
    if quant_state is not None:
        return quant_state.shape.numel()
    return getattr(parameter, "ds_numel", parameter.numel())


def quantization_kwargs(adapter: AdapterSection, dtype: torch.dtype, device_type: str) -> dict[str, Any]:
    """Arguments for `from_pretrained` that load the base in 4 bit on this rank's device; UserError under ZeRO-3."""
    if is_deepspeed_zero3_enabled():
        raise UserError(
            "adapter.load_in_4bit: ZeRO-3 cannot partition 4-bit weights: use a ZeRO-1 or ZeRO-2 JSON, "
            "where every rank holds the whole 4-bit base"
        )
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device_type == "cuda" else device_type
    return {"quantization_config": bnb_config(adapter, dtype), "device_map": {"": device}}


def bnb_config(adapter: AdapterSection, dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 in blocks of 64, scales quantised again with `double_quant`; matmuls in `dtype`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=adapter.double_quant,
        bnb_4bit_compute_dtype=dtype,
    )


def prepare_4bit(model: PreTrainedModel) -> None:
    """Keeps every 4-bit layer in the format that has a backward pass (see the module docstring)."""
    from bitsandbytes.nn.modules import Linear4bit  # here, since only 4-bit runs should need bitsandbytes

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def attach_lora(model: PreTrainedModel, adapter: AdapterSection) -> PeftModel:
    """Freezes `model` and puts LoRA layers into `adapter.target_modules`.

    `all-linear` is every linear layer but the head; a list holds module names or their last parts; any other string is
    a regular expression over full names. Raises UserError for a target that matches nothing.
    """
    _check_targets(model, adapter.target_modules)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.target_modules,
        use_dora=adapter.dora,
        use_rslora=adapter.rslora,
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"adapter: {str(error).splitlines()[0]}; linear layers here: {_linear_names(model)}") from error
    assert isinstance(adapted, PeftModel)
    if adapts_tied(adapted):
        logger.info(
            "adapter.target_modules: embedding and head are tied, and an adapter is on one of them: it trains that one "
            "alone, and --format merged saves the two apart"
        )
    return adapted


def adapts_tied(model: PeftModel) -> bool:
    """Whether an adapter stands on the embedding or the head of a model in which the two are one weight."""
    base: Any = model.get_base_model()
    ends = base.get_input_embeddings(), base.get_output_embeddings()
    if any(end is None for end in ends) or not any(isinstance(end, BaseTunerLayer) for end in ends):
        return False
    one, other = (end.get_base_layer() if isinstance(end, BaseTunerLayer) else end for end in ends)
    return one.weight is other.weight


def _check_targets(model: PreTrainedModel, targets: list[str] | str) -> None:
    """peft is content when one entry of a list matches; a typo in another would train fewer layers than asked for."""
    if isinstance(targets, str):
        return
    names = [name for name, _ in model.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise UserError(
                f"adapter.target_modules: {target!r} is no module of {type(model).__name__}; "
                f"linear layers here: {_linear_names(model)}"
            )


def _linear_names(model: nn.Module) -> str:
    linear = (nn.Linear, Conv1D)
    return ", ".join(sorted({name.split(".")[-1] for name, m in model.named_modules() if isinstance(m, linear)}))
