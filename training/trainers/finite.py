"""A loss or a gradient that is not finite stops the run before the optimizer step that it belongs to.

One NaN in a gradient makes every weight NaN with the next optimizer step, and every checkpoint after it. So before each
step all ranks agree whether the losses of its micro-batches and its gradient are finite; if not, all of them raise
`NotFiniteError`, the weights are those of the step before, and `events.jsonl` has the true values.

| set-up | losses | gradient |
|---|---|---|
| PyTorch, DDP, FSDP | before `optimizer.step` | its norm, which the Trainer computes whether it clips or not |
| DeepSpeed | before `engine.step` | its own check, on in any case, leaves the step out on all ranks |
| DeepSpeed without ZeRO in float32 | before `engine.step` | its norm, before `engine.step` |
| loss scaling (fp16) | - | an overflow is a step that is left out by design: an event, counted (`SkippedSteps`) |

Cost: a few operations on scalars, one all-reduce of 4 bytes with several ranks, and one value read by the host in each
optimizer step. On a CPU reading is free; a GPU has computed its backward pass before the optimizer's kernels are
queued, so it stands idle while the host launches the first of them.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from data_prep.errors import UserError
from training.checkpoints.manifest import find_last_finite
from training.data.batch import BatchInfo

logger = logging.getLogger("redline.train")

MAX_SKIPPED_IN_A_ROW = 50  # a scale of 2^16 is at 1 after 16 halvings, DeepSpeed's hysteresis doubles them
SHOWN_ROWS = 8
AT_MINIMUM = "already at minimum"  # DeepSpeed's words for a loss scale that cannot fall further


class NotFiniteError(UserError):
    """Training cannot continue; `details` are for summary.json."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details


@dataclass
class FiniteCheck:
    """The micro-batches of the optimizer step under way: losses () as backward gets them, and what was in them."""

    trainer: Any
    losses: list[torch.Tensor] = field(default_factory=list)
    infos: list[BatchInfo | None] = field(default_factory=list)

    def begin(self, info: BatchInfo | None) -> None:
        """A micro-batch of the step begins."""
        self.infos.append(info)

    def forget(self) -> None:
        """The step is over."""
        self.losses, self.infos = [], []

    def check(self, norm: torch.Tensor | float | None) -> None:
        """Collective. norm: of the gradient, the same on all ranks; None where it is not known here.

        Raises NotFiniteError on all ranks when a loss of any rank, or the norm, is not finite.
        """
        values = [loss.detach().float().reshape(()) for loss in self.losses]
        if norm is not None:
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # pyright: ignore[reportAttributeAccessIssue]
            values.append(torch.as_tensor(norm, dtype=torch.float32, device=self.trainer.args.device).detach())
        if not values:
            return
        bad = 1.0 - torch.isfinite(torch.stack(values)).all().float()
        if self.trainer.args.world_size > 1:
            dist.all_reduce(bad, op=dist.ReduceOp.MAX)
        if bad.item():
            self.stop(math.nan if norm is None else float(norm), gradient_is_known=norm is not None)

    def stop(self, norm: float, *, gradient_is_known: bool = True) -> None:
        """Collective. Write the event and raise NotFiniteError, the same on all ranks."""
        trainer = self.trainer
        own = {
            "rank": trainer.args.process_index,
            "losses": [float(loss) for loss in self.losses],
            "rows": [self._describe_rows(info) for info in self.infos],
            "weights": find_not_finite(trainer.model),
        }
        ranks: list[Any] = [own]
        if trainer.args.world_size > 1:
            ranks = [None] * trainer.args.world_size
            dist.all_gather_object(ranks, own)
        step = trainer.state.global_step + 1
        weights = next((rank["weights"] for rank in ranks if rank["weights"]), None)
        kept = find_last_finite(trainer.run_dir.path)
        message = _describe(ranks, norm if gradient_is_known else None, step, weights, kept and kept.name)
        if trainer.args.should_save:
            trainer.run_dir.append_event(
                "not_finite", step, message, grad_norm=str(norm) if gradient_is_known else None,
                losses={f"rank {rank['rank']}": [str(loss) for loss in rank["losses"]] for rank in ranks},
                rows={f"rank {rank['rank']}": rank["rows"] for rank in ranks},
                last_finite_checkpoint=kept and kept.name,
            )  # fmt: skip
        raise NotFiniteError(message, step_not_finite=step, last_finite_checkpoint=kept and kept.name)

    def _describe_rows(self, info: BatchInfo | None) -> str:
        describe = getattr(self.trainer.train_batches, "describe_rows", None)
        return describe(info.row_ids[:SHOWN_ROWS]) if info and info.row_ids and describe else "rows not known"


def _describe(
    ranks: list[dict[str, Any]], norm: float | None, step: int, weights: str | None, checkpoint: str | None
) -> str:
    """One line: what is not finite, in which batch, and what to do."""
    several = len(ranks) > 1
    where = {rank["rank"]: f" on rank {rank['rank']}" if several else "" for rank in ranks}
    culprits = [
        f"the loss of micro-batch {index + 1} of {len(rank['losses'])}{where[rank['rank']]} is {loss} ({rows})"
        for rank in ranks
        for index, (loss, rows) in enumerate(zip(rank["losses"], rank["rows"], strict=False))
        if not math.isfinite(loss)
    ]
    if not culprits:
        rows = "; ".join(", ".join(rank["rows"]) + where[rank["rank"]] for rank in ranks)
        value = "is not finite" if norm is None else f"has norm {norm}"
        culprits = [f"the gradient {value}, though every loss is finite ({rows})"]
    found = "; ".join(culprits[:4]) + f"; and {len(culprits) - 4} more" * (len(culprits) > 4)
    if weights:
        state = f"the weights were not finite before it, first {weights}"
    else:
        state = "the step was not taken, the weights are those before it"
    kept = (
        f"{checkpoint} is the last with finite weights" if checkpoint else "no checkpoint with finite weights is kept"
    )
    advice = "lower training.learning_rate, set training.max_grad_norm, or look at these rows"
    return f"step {step}: {found}; {state}; {kept}: {advice}"


def find_not_finite(model: torch.nn.Module) -> str | None:
    """Name of the first parameter that holds a NaN or an infinity; of a sharded one, in what this rank has of it."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            held: Any = getattr(parameter, "ds_tensor", parameter)  # ZeRO-3
            held = held.to_local() if hasattr(held, "to_local") else held  # FSDP
            if held.is_floating_point() and held.device.type != "meta" and not is_finite(held):
                return name
    return None


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether it holds no NaN and no infinity. Its extremes tell, in one pass without a copy: a NaN is both."""
    if not tensor.numel() or tensor.element_size() < 2:  # of 8 bits, no extremes are computed
        return bool(torch.isfinite(tensor).all())
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


def check_weights(trainer: Any, what: str, *, is_open: bool = True) -> None:
    """Collective. Raises NotFiniteError on all ranks when the weights are not finite on any; what: is not done then.

    is_open: the run directory is this run's. An older run in it gets no event of this one.
    """
    found: list[str | None] = [find_not_finite(trainer.model)]
    if trainer.args.world_size > 1:
        own, found = found[0], [None] * trainer.args.world_size
        dist.all_gather_object(found, own)
    name = next(filter(None, found), None)
    if name is None:
        return
    step = trainer.state.global_step
    if not (is_open or step):
        raise NotFiniteError(f"{what}, the weights that training starts from are not finite, first {name}")
    kept = find_last_finite(trainer.run_dir.path)
    last = f"{kept.name} is the last with finite ones" if kept else "no checkpoint with finite ones is kept"
    message = f"{what}, the weights are not finite after step {step}, first {name}; {last}"
    if is_open and trainer.args.should_save:
        kept_name = kept and kept.name
        trainer.run_dir.append_event("not_finite", step, message, weight=name, last_finite_checkpoint=kept_name)
    raise NotFiniteError(message, last_finite_checkpoint=kept and kept.name)


def guard_step(trainer: Any, check: FiniteCheck) -> None:
    """Wrap what a trainer, prepared for training, calls in a step. `_get_grad_norm` is its own seam."""
    accelerator = trainer.accelerator
    backward = accelerator.backward

    @functools.wraps(backward)
    def checked_backward(loss: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        check.losses.append(loss.detach())  # not the graph
        return backward(loss, *args, **kwargs)

    accelerator.backward = checked_backward
    if trainer.is_deepspeed_enabled:
        guard_engine(trainer.model_wrapped, check)


def guard_engine(engine: Any, check: FiniteCheck) -> None:
    """DeepSpeed steps within `backward`. In 16 bits, and with ZeRO, its optimizer leaves out a step whose gradient is
    not finite and counts it (`skipped_steps`); only fp16 may continue after that."""
    optimizer, step, scales = engine.optimizer, engine.step, bool(engine.fp16_enabled())
    if getattr(optimizer, "check_grad_overflow", True) is False:
        optimizer.check_grad_overflow = True  # off in float32, or by bf16.check_grad_overflow: false
        logger.info("DeepSpeed's check of the gradient is on: a step with a NaN in it would reach the weights")

    @functools.wraps(step)
    def checked_step(*args: Any, **kwargs: Any) -> Any:
        skipped = engine.skipped_steps
        if not scales:
            check.check(None if hasattr(optimizer, "overflow") else _measure_norm(engine.module.parameters()))
        try:
            result = step(*args, **kwargs)
        except Exception as error:
            if AT_MINIMUM in str(error):
                raise NotFiniteError(f"step {check.trainer.state.global_step + 1}: {error}") from None
            raise
        if engine.skipped_steps > skipped and not scales:
            check.stop(math.nan, gradient_is_known=False)
        return result

    engine.step = checked_step


def _measure_norm(parameters: Iterable[torch.Tensor]) -> torch.Tensor | None:
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients) if gradients else None
