"""What the loss of a token is made of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

IGNORE = -100
"""Label of a token without loss."""


@dataclass(frozen=True)
class LossTerms:
    """Cross-entropy, with label smoothing (as `F.cross_entropy` has it) and z-loss (PaLM, arXiv 2204.02311)."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    """Coefficient of the squared log-sum-exp of a token's logits."""
    scale: float | Tensor = 1.0
    """Factor of every loss: 1 / tokens."""

    @property
    def is_plain(self) -> bool:
        """Whether the loss is the cross-entropy and nothing else."""
        return not self.label_smoothing and not self.z_loss


PLAIN = LossTerms()


def find_terms(label_smoothing: float | None, z_loss: float) -> LossTerms:
    """Of a recipe's `training.label_smoothing_factor` and `model.z_loss`."""
    return LossTerms(float(label_smoothing or 0.0), z_loss)
