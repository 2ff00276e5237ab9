"""From a recipe's `model` and `adapter` sections to a model ready for the Trainer.

Three ways: `model.path` (saved weights), `model.config` with a `model_type` (any architecture, random weights),
`model.kind: minigpt` (also what an empty section means). Seeding is the caller's.

Dtype of the parameters (`model.dtype`)
- `auto` is float32 for every parameter that trains: bf16 autocast and DeepSpeed both compute in bf16 from there, and
  the float32 values are the master weights that small updates need. DeepSpeed casts the module itself and copies its
  masters from what it gets, so loading in the checkpoint's bf16 would round twice. (Under ZeRO-3 bf16 parameters are
  created in bf16 by `zero.Init`; masters then start from rounded values, which for bf16 checkpoints is exact.)
- `auto` for the frozen base under LoRA is the compute dtype: float32 would cost twice the memory for nothing.
- float16 is refused for parameters that train: their gradients cannot be unscaled.

Under ZeRO-3 (a live `HfDeepSpeedConfig`) `from_pretrained` and `from_config` build partitioned models automatically.
With `meta=True` nothing is allocated: shapes only, for planning; a local `config.json` is enough.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.quantizers.auto import AutoHfQuantizer

from data_prep.errors import UserError
from training.activations.modes import OFF, Checkpointing
from training.attention.choose import check_attention, choose_attention, find_model_class
from training.attention.kernels import Compute
from training.precision import PRECISIONS

from .adapters import attach_lora, bnb_config, prepare_4bit, quantization_kwargs, trainable_share
from .pretrained import fit_vocabulary, load_config, load_pretrained, resolve_path
from .scratch import TokenizerFacts, scratch_config
from .weight_files import check_weight_files

if TYPE_CHECKING:
    from training.config.sections import AdapterSection, ModelSection

logger = logging.getLogger("redline.models")


def build_model(
    model: ModelSection,
    adapter: AdapterSection,
    tokenizer: TokenizerFacts,
    compute: Compute,
    *,
    checkpointing: Checkpointing = OFF,
    meta: bool = False,
) -> PreTrainedModel | PeftModel:
    """The model of a recipe, on the CPU (4-bit weights: on this rank's device; `meta`: on the meta device).

    checkpointing: what the backward pass computes again.
    Raises UserError for whatever in the two sections cannot be built.
    """
    lora = adapter.method == "lora"
    _check_sections(model, adapter)
    config = scratch_config(model, tokenizer) if model.path is None else load_config(model, planning=meta)
    implementation, _ = choose_attention(model.attn_implementation, compute, find_model_class(config), is_planned=meta)
    parameter_dtype = resolve_parameter_dtype(model.dtype, compute_dtype=compute.dtype, frozen=lora)
    if model.path is None or meta:
        built = build_from_config(
            config, implementation, parameter_dtype, meta=meta, trust_remote_code=model.trust_remote_code
        )
        if adapter.load_in_4bit:
            _quantize_meta(built, adapter, compute.dtype)
    else:
        quantization = quantization_kwargs(adapter, compute.dtype, compute.device_type) if adapter.load_in_4bit else {}
        built = load_pretrained(model, dtype=parameter_dtype, attn_implementation=implementation, **quantization)
        if adapter.load_in_4bit:
            prepare_4bit(built)
    if model.path is not None:
        fit_vocabulary(built, tokenizer.vocab_size, frozen=lora)
    return _finish(built, adapter, checkpointing)


def check_model(model: ModelSection, seq_len: int, *, on_cpu: bool) -> None:
    """Raises UserError for what can be told of a model while there is no tokenizer yet: its architecture and shape,
    whether its attention runs here, its weights are there and whole, and whether it has positions for rows of `seq_len`
    tokens (a warning where they are rotary and can be stretched)."""
    config = load_shape(model)
    compute = Compute("cpu" if on_cpu else "cuda", torch.bfloat16, packed=True)  # the dtype is asked later
    check_attention(model.attn_implementation, compute, find_model_class(config))
    if model.path is not None and Path(resolve_path(model)).is_dir():
        check_weight_files(Path(resolve_path(model)))
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is None or seq_len <= positions:
        return
    fault = f"data.seq_len: rows of {seq_len} tokens, but the model has {positions} positions"
    if model.path is None:
        raise UserError(f"{fault}: raise model.config.max_position_embeddings, or shorten the rows")
    if not hasattr(config.get_text_config(), "rope_parameters"):
        raise UserError(f"{fault}, which are a table: shorten the rows")
    logger.warning("%s: what it writes beyond them has to be learnt again", fault)


def load_shape(model: ModelSection, *, planning: bool = False) -> PreTrainedConfig:
    """The architecture and sizes of a model while there is no tokenizer yet, without weights.

    planning: as of `load_config`. Raises UserError for what cannot be found or read.
    """
    if model.path is None:
        return scratch_config(model, TokenizerFacts(vocab_size=1))
    return load_config(model, planning=planning)


def resolve_parameter_dtype(requested: str, *, compute_dtype: torch.dtype, frozen: bool) -> torch.dtype:
    """dtype the base parameters are held in (see the module docstring); UserError for float16 that must train."""
    if requested == "auto":
        return compute_dtype if frozen else torch.float32
    scaled = {one.name for one in PRECISIONS if one.scales_loss}
    if requested in scaled and not frozen:
        raise UserError(f"model.dtype: {requested} parameters cannot be trained: use auto, with training.fp16")
    if requested == "bfloat16" and not frozen:
        logger.info("model.dtype bfloat16: float32 masters start from rounded values, without DeepSpeed there are none")
    return getattr(torch, requested)


def build_from_config(
    config: PreTrainedConfig, implementation: str, dtype: torch.dtype, *, meta: bool, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A model of this shape with random weights, or on the meta device.

    Raises UserError for weights that this machine's memory cannot hold."""
    if not meta and not is_deepspeed_zero3_enabled():  # ZeRO-3 holds a part of each weight only
        _check_memory(build_from_config(config, implementation, dtype, meta=True, trust_remote_code=trust_remote_code))
    try:
        with torch.device("meta") if meta else nullcontext():
            return AutoModelForCausalLM.from_config(
                config, attn_implementation=implementation, dtype=dtype, trust_remote_code=trust_remote_code
            )
    except RuntimeError as error:
        if "allocate memory" not in str(error) and not isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(
            "model: there is no memory for its weights: `python -m training.plan` says what they need"
        ) from error


def _check_memory(shapes: PreTrainedModel) -> None:
    """Linux grants memory that it does not have and kills the process that fills it: nothing would be raised later."""
    needed = sum(parameter.numel() * parameter.element_size() for parameter in shapes.parameters())
    free = psutil.virtual_memory().available + psutil.swap_memory().free
    if needed > free:
        raise UserError(
            f"model: there is no memory for its weights: they take {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are "
            "free: `python -m training.plan` says what a run needs"
        )


def _check_sections(model: ModelSection, adapter: AdapterSection) -> None:
    if model.path and (model.config or model.kind):
        other = "model.kind" if model.kind else "model.config"
        raise UserError(f"model.path and {other} are both set: keep one")
    if adapter.load_in_4bit and adapter.method != "lora":
        raise UserError("adapter.load_in_4bit: 4-bit weights cannot be trained themselves: set adapter.method: lora")
    if adapter.load_in_4bit and model.path is None:
        raise UserError("adapter.load_in_4bit: needs saved weights: set model.path to a directory or a hub name")
    if adapter.method == "lora" and model.path is None:
        logger.warning("adapter.method lora on a model from scratch: its random base is frozen and not saved")


def _quantize_meta(model: PreTrainedModel, adapter: AdapterSection, dtype: torch.dtype) -> None:
    """Swaps in the 4-bit layers, unpacked shapes, exactly where loading with weights would."""
    quantizer = AutoHfQuantizer.from_config(bnb_config(adapter, dtype), pre_quantized=False)
    quantizer.preprocess_model(model=model, device_map=None)
    quantizer.postprocess_model(model)


def _finish(
    model: PreTrainedModel, adapter: AdapterSection, checkpointing: Checkpointing
) -> PreTrainedModel | PeftModel:
    built = attach_lora(model, adapter) if adapter.method == "lora" else model
    if built is not model:
        logger.info("%s", trainable_share(built))
    if checkpointing.every:
        checkpointing.apply(model)
    return built
