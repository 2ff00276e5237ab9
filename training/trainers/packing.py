"""Whether documents in one row leave each other alone, tried on the model as it will train."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch

from training.data.packing_check import EPSILON, check_packing, measure_crosstalk
from training.precision import find_precision
from training.ranks import gather_floats

if TYPE_CHECKING:
    from training.trainers.recipe_trainer import RecipeTrainer


def check_documents_apart(trainer: RecipeTrainer) -> None:
    """Raises UserError where packed documents see each other. Collective: every rank does the same forwards, so ZeRO-3
    can gather."""
    model: Any = trainer.deepspeed if trainer.is_deepspeed_enabled else trainer.model
    config = cast(Any, trainer.model).config.get_text_config()
    computed_in = find_precision(vars(trainer.args)).dtype
    dtypes = {computed_in, *(parameter.dtype for parameter in model.parameters())}.intersection(EPSILON)

    def forward(batch: dict[str, Any]) -> torch.Tensor:
        inputs: Any = trainer._prepare_input(batch)
        return model(**inputs, use_cache=False).logits

    was_training = model.training
    model.eval()
    with torch.no_grad(), torch.random.fork_rng([trainer.args.device] if trainer.args.device.type == "cuda" else []):
        crosstalk = measure_crosstalk(
            forward, vocab_size=config.vocab_size, varlen=getattr(trainer.data_collator, "varlen", False)
        )
    model.train(was_training)
    worst = max(gather_floats(crosstalk, trainer.args.device), key=lambda value: (math.isnan(value), value))
    check_packing(worst, max(dtypes, key=lambda dtype: EPSILON[dtype]), str(config._attn_implementation))
