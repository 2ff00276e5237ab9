"""A LoRA adapter merged into its base, saved whole and checked.

An adapter on one of two tied weights (the embedding and the head of most small models) changes that one alone. Merged
into the one weight that both share it would change the other, too, so the two are parted first and the merged model is
saved with `tie_word_embeddings: false`. The same holds for adapters that carry weights of their own (peft's
`modules_to_save`, `trainable_token_indices`).

Guarantee: the saved model is loaded again and its logits are those of base and adapter, within `LIMITS`, or there is an
error and nothing is left.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from data_prep.errors import UserError
from training.models.adapters import adapts_tied
from training.models.trained import (
    explain_load_errors,
    load_whole,
    measure_difference,
    put_adapter,
    read_base,
    take_generation_config,
)

PROBE_TOKENS = 64
# Root mean square of the difference of logits over their standard deviation. In 16 bits a merged weight is rounded
# once more, which a deep model amplifies (SmolLM2-135M in bf16: 0.05); a merge into a tied weight comes out above 1.
LIMITS = {torch.float32: 1e-3, torch.float64: 1e-3}
LIMIT_16_BIT = 0.2


def merge_adapter(adapter_dir: Path, out: Path, *, trust_remote_code: bool = False) -> str:
    """Saves base + adapter as one full model in `out`, in the base checkpoint's dtype; returns the base's name or path.

    The base is loaded unquantised even if the adapter was trained on a 4-bit one. Raises UserError when the adapter
    names no base, the base cannot be loaded, or the merged model computes something else.
    """
    with explain_load_errors(adapter_dir):
        base_name = read_base(adapter_dir)
        base = load_whole(base_name, dtype="auto", trust_remote_code=trust_remote_code)
        adapted: Any = put_adapter(base, adapter_dir)
        take_generation_config(base, adapter_dir)
    expected = compute_probe_logits(adapted)
    if adapts_tied(adapted):
        _untie(adapted.get_base_model())
    merged = adapted.merge_and_unload()
    _settle_tie(merged)
    merged.save_pretrained(out)
    check_saved(out, expected, f"base and adapter of {adapter_dir}", trust_remote_code=trust_remote_code)
    return base_name


def compute_probe_logits(model: Any) -> torch.Tensor:
    """Logits (1, PROBE_TOKENS, vocab) in float32 for ids that are drawn once for each size of vocabulary."""
    config = model.config.get_text_config()
    length = min(PROBE_TOKENS, getattr(config, "max_position_embeddings", None) or PROBE_TOKENS)
    ids = torch.randint(0, config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False).logits.float()


def check_saved(out: Path, expected: torch.Tensor, what: str, *, trust_remote_code: bool = False) -> None:
    """Raises UserError, and removes `out`, when the model saved there computes other logits than `expected`."""
    saved: Any = AutoModelForCausalLM.from_pretrained(out, dtype="auto", trust_remote_code=trust_remote_code)
    difference = measure_difference(compute_probe_logits(saved), expected)
    limit = LIMITS.get(saved.dtype, LIMIT_16_BIT)
    if not difference <= limit:
        shutil.rmtree(out)
        raise UserError(
            f"{out}: the exported model computes other logits than {what} (rms difference {difference:.3g} standard "
            f"deviations, limit {limit:g}): nothing was written"
        )


def _untie(base: Any) -> None:
    """Gives the head a weight of its own, equal to the embedding's."""
    head: Any = base.get_output_embeddings()
    layer: Any = getattr(head, "base_layer", head)
    layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)


def _settle_tie(merged: PreTrainedModel) -> None:
    """Has the config say of embedding and head what merging made of them: one weight, or two."""
    config: Any = merged.config
    embedding: Any = merged.get_input_embeddings()
    head: Any = merged.get_output_embeddings()
    if not config.tie_word_embeddings or head is None or torch.equal(embedding.weight, head.weight):
        return
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    merged.all_tied_weights_keys = {}
