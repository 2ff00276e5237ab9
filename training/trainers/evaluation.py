"""Evaluation over tokens: each validation row once, and a loss that is the mean over all tokens that carry loss.

The Trainer makes batches even over the ranks by dropping or repeating rows, and averages over batches.
"""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from data_prep.progress import Advance, progress
from training.data.batch import BatchInfo
from training.data.dataset import EvenRows
from training.ranks import sum_over_ranks
from training.trainers.text_counter import find_bits_per_byte


class TokenMeanEvaluation(Trainer):
    """A Trainer whose subclass tells `count_evaluated` of each batch that it evaluates, before its loss is computed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._eval_batches: list[tuple[float, int, int]] = []  # mean or summed loss, tokens with loss, their bytes
        self._advance_evaluation: Advance = lambda batches: None
        super().__init__(*args, **kwargs)

    def count_evaluated(self, info: BatchInfo) -> None:
        """Note what a batch contains, before its loss is computed."""
        self._eval_batches.append((0.0, info.loss_tokens, info.loss_bytes))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Every validation row once: the tail is neither dropped nor repeated to make batches even over the ranks."""
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            multiple = self.args.eval_batch_size * self.args.world_size
            return super().get_eval_dataloader(EvenRows(rows, len(rows), multiple))
        finally:
            self.args.dataloader_drop_last = drop_last

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Keep the loss of the batch beside its counts."""
        num_batches = len(self._eval_batches)
        outputs = super().prediction_step(*args, **kwargs)
        if len(self._eval_batches) > num_batches and outputs[0] is not None:
            self._eval_batches[-1] = (outputs[0].item(), *self._eval_batches[-1][1:])
        self._advance_evaluation(1)
        return outputs

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """The Trainer averages over batches; a validation loss is a mean over tokens."""
        self._eval_batches = []
        with progress("evaluating", len(dataloader), "batches") as self._advance_evaluation:
            output = super().evaluation_loop(dataloader, *args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        if self._eval_batches and output.metrics and f"{prefix}_loss" in output.metrics:
            output.metrics[f"{prefix}_loss"], bits_per_byte = self._mean_eval_loss()
            if bits_per_byte is not None:
                output.metrics[f"{prefix}_bits_per_byte"] = bits_per_byte
        return output

    def _mean_eval_loss(self) -> tuple[float, float | None]:
        """Mean over tokens and ranks, and the same losses in bits per byte of their text, None where none is counted.

        A model that takes `num_items_in_batch` returns, on rank r, its sum of losses x ranks / tokens of the batch on
        all ranks; any other returns its own mean. Either way the weights below give back the sum of losses.
        """
        tokens = [float(count) for _, count, _ in self._eval_batches]
        text_bytes = float(sum(count for *_, count in self._eval_batches))
        gets_tokens = self.model_accepts_loss_kwargs or self.compute_loss_func is not None
        if gets_tokens and self.args.average_tokens_across_devices:
            weights = [total / self.args.world_size for total in sum_over_ranks(tokens, self.args.device)]
        else:
            weights = tokens  # a batch of padding rows alone has no mean, and no weight
        losses = sum(batch[0] * weight for batch, weight in zip(self._eval_batches, weights, strict=True) if weight)
        loss_sum, token_sum, byte_sum = sum_over_ranks([losses, sum(tokens), text_bytes], self.args.device)
        mean = loss_sum / token_sum if token_sum else float("nan")
        return mean, find_bits_per_byte(loss_sum, byte_sum)
