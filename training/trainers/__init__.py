"""Subclasses of the Hugging Face Trainer: a few seams, never a copied loop.

`Profiled` measures any of them, `ProfiledTrainer` is the stock Trainer with it (docs/use_your_own_trainer.md);
`RecipeTrainer` is what our recipes train with.
"""

from training.trainers.profiled_trainer import Profiled, ProfiledTrainer

__all__ = ["Profiled", "ProfiledTrainer"]
