"""What the project asks of an optimizer."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

IN_8BIT = 1 + 4 / 256
"""Bytes of a state of bitsandbytes in 8 bits: one, and an fp32 scale for 256 of them (blockwise quantisation)."""
MIN_8BIT_ELEMENTS = 4096
"""bitsandbytes keeps the states of smaller tensors in fp32 (its `min_8bit_size`)."""
STATES_OF_ADAM = 2


@dataclass(frozen=True)
class Package:
    """A package that an optimizer needs: the module to import, and what to install."""

    module: str
    requirement: str

    def is_installed(self) -> bool:
        """Looked up, not imported."""
        return importlib.util.find_spec(self.module) is not None


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a step takes for a moment beyond the states, and what they are."""

    bytes: int
    note: str


@dataclass(frozen=True)
class Optimizer:
    """One optimizer: a value of `training.optim`, a type of a DeepSpeed JSON, or both."""

    name: str
    """Value of `training.optim`; type of a DeepSpeed JSON in lower case."""
    states: int | None = None
    """Values that it keeps for each trained element; None: not known, taken for Adam's two."""
    adds_state: tuple[str, ...] = ()
    """Its arguments that add one value each when they are on."""
    flat_states: int | None = None
    """The same under DeepSpeed, whose flat partitions have no rows and columns to factor; None: as `states`."""
    in_8bit: bool = False
    """Whether bitsandbytes holds the states in 8 bits."""
    packages: tuple[Package, ...] = ()
    """Those of the project's own requirements, too: a GPU machine may come with a torch of its own and without them."""
    arguments: tuple[str, ...] = ()
    """Keys of `training.optim_args`. `weight_decay` is never one: every parameter group has `training.weight_decay`."""
    refusal: str = ""
    """Why it is not offered; empty: it is."""
    projects: bool = False
    """Whether it projects the gradients of chosen linear layers (`training.optim_target_modules`)."""
    in_recipe: bool = True
    """Whether it is a value of `training.optim`."""
    in_json: Literal["", "deepspeed", "torch"] = ""
    """Whose class a DeepSpeed JSON means by the name; empty: it cannot be named there."""
    own_rates: tuple[str, ...] = ()
    """Keys of a DeepSpeed JSON's `params` that take `training.learning_rate` instead of `lr`."""
    same_training: str = ""
    """Optimizers with the same word here take the same steps up to rounding."""
    advised_on: tuple[str, ...] = ()
    """Types of device on which `benchmark advise` tries it."""

    def find_missing(self) -> Package | None:
        """The first of its packages that is not installed."""
        return next((package for package in self.packages if not package.is_installed()), None)

    def find_temporaries(self, largest: int, trained: int, *, on_gpu: bool) -> StepMemory | None:
        """What a step makes for a moment; largest, trained: elements of one tensor and of all."""
        return None

    def count_flops(self, shapes: Iterable[Sequence[int]]) -> int:
        """FLOPs of matrix products in a step over weights of these shapes. Elementwise optimizers have none."""
        return 0

    def count_moved_bytes(self, weights: int, states: int) -> int:
        """Bytes that a step moves: gradients read, weights and states read and written. In: bytes of each."""
        return 3 * weights + 2 * states


@dataclass(frozen=True)
class ForeachAdam(Optimizer):
    """PyTorch's Adam when it is not fused (torch/optim/adam.py)."""

    def find_temporaries(self, largest: int, trained: int, *, on_gpu: bool) -> StepMemory | None:
        """A GPU steps all tensors at once and roots every second moment. A CPU steps one at a time, and makes its root
        and that root's quotient."""
        if on_gpu:
            return StepMemory(4 * trained, "sqrt(v) of all")
        return StepMemory(2 * 4 * largest, "sqrt(v) of the largest, twice")


@dataclass(frozen=True)
class ChosenOptimizer:
    """The optimizer of a run, with those of its arguments that add a state."""

    facts: Optimizer
    with_states: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Such as `sgd with momentum`."""
        name = self.facts.name
        return f"{name} with {' and '.join(self.with_states)}" if self.with_states else name

    @property
    def states(self) -> int:
        """Values for each trained element."""
        known = self.facts.states
        return (STATES_OF_ADAM if known is None else known) + len(self.with_states)

    def count_state_bytes(self, elements: float, in_fp32: int) -> int:
        """Bytes of states without DeepSpeed; in_fp32: elements whose states an 8-bit optimizer keeps in fp32."""
        if not self.facts.in_8bit:
            return round(4 * self.states * elements)
        return round(self.states * (IN_8BIT * (elements - in_fp32) + 4 * in_fp32))

    @property
    def flat_bytes(self) -> float:
        """Bytes of states for each element of DeepSpeed's flat partitions, in which no embedding is kept in fp32."""
        flat = self.facts.flat_states
        return (self.states if flat is None else flat) * (IN_8BIT if self.facts.in_8bit else 4)
