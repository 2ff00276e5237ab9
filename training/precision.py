"""The precisions that a run can compute in, and what each decides for the rest of the project.

A recipe chooses one with `training.bf16` and `training.fp16`, whose names are also those of DeepSpeed's blocks. Each
precision is one object in `PRECISIONS`: checks, planner, advice and documentation iterate over that tuple. This module
is imported before torch, so it names the torch dtype and looks it up only when asked.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


logger = logging.getLogger("redline.launch")


@dataclass(frozen=True)
class Precision:
    """One number format of matmuls."""

    name: str
    """As torch calls its dtype."""
    switch: str | None
    """Field of TrainingArguments and block of a DeepSpeed JSON that turn it on; None: both of the others are off."""
    rounding: float
    """Relative rounding error of a matmul's inputs. float32 may run as TF32, which has float16's mantissa."""
    reload_tolerance: float
    """Largest accepted difference of a reloaded model's logits, in their standard deviations (`run/finish.py`)."""
    scales_loss: bool = False
    """Whether gradients need a scaled loss, as float16's small range does."""
    device_types: tuple[str, ...] = ("cpu", "cuda")
    """Those that can train in it."""
    accelerated_name: str | None = None
    """Format of matmuls where `training.tf32` is on; None: its own."""

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype."""
        import torch

        return getattr(torch, self.name)

    @property
    def short_name(self) -> str:
        """As `accelerate launch --mixed_precision` calls it: `bf16`, `fp16` or `no`."""
        return self.switch or "no"

    def obstacle(self, device_type: str) -> str | None:
        """What keeps a device of this type (cpu, cuda) from training in it; None: nothing."""
        return None if device_type in self.device_types else f"{self.name} needs a GPU, and this run is on a CPU"

    def peak_format(self, *, tf32: bool) -> str:
        """The number format whose peak rate matmuls can reach; tf32: whether float32 ones run as TF32."""
        return self.accelerated_name if tf32 and self.accelerated_name else self.name

    def switches(self) -> dict[str, bool]:
        """Every field of TrainingArguments that chooses a precision, set so that this one is chosen."""
        return {name: name == self.switch for name in list_switches()}


# The limits of reloading leave room for rounding, which a deep model amplifies: in SmolLM2-135M in bf16, a change of
# the last place before the first layer becomes 0.024 standard deviations of the logits.
PRECISIONS = (
    Precision("bfloat16", "bf16", rounding=2.0**-8, reload_tolerance=0.05),
    Precision("float16", "fp16", rounding=2.0**-11, reload_tolerance=0.05, scales_loss=True, device_types=("cuda",)),
    Precision("float32", None, rounding=2.0**-11, reload_tolerance=1e-4, accelerated_name="tfloat32"),
)


def list_switches() -> tuple[str, ...]:
    """Fields of TrainingArguments and blocks of a DeepSpeed JSON that choose a precision."""
    return tuple(one.switch for one in PRECISIONS if one.switch)


def find_precision(arguments: Mapping[str, Any]) -> Precision:
    """The precision that these arguments choose: `config.arguments()`, or `vars()` of TrainingArguments."""
    return next(one for one in PRECISIONS if one.switch is None or arguments.get(one.switch))


FLOAT32_ERROR = 2e-6
"""Largest relative error of a float32 product of this length (`speed_up_float32`); one in bfloat16 has 2e-3."""


@contextmanager
def compute_float32(asked: str, arguments: Mapping[str, Any], device_type: str) -> Iterator[None]:
    """Within it, float32 products are computed as `perf.float32_products` asks: `auto` or `torch`. Logs which way.

    arguments: as of `find_precision`. Only `auto` in float32 on a CPU changes anything.
    """
    import torch

    before = torch.get_float32_matmul_precision()
    if asked == "auto" and device_type == "cpu" and find_precision(arguments).name == "float32":
        logger.info("float32 products: %s", speed_up_float32())
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def speed_up_float32() -> str:
    """Have oneDNN compute float32 products on a CPU, if they stay exact; what was done, in words.

    torch gives them to MKL, which takes a slow path on AMD (1.7 times as long on Zen 5). The switch to oneDNN, a matmul
    precision of "medium", also lets it round to bfloat16 where the CPU has AMX: one product tells.
    """
    import torch

    before = torch.get_float32_matmul_precision()
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = left.double() @ right.double()
    torch.set_float32_matmul_precision("medium")
    error = float((left @ right - exact).norm() / exact.norm())
    if error <= FLOAT32_ERROR:
        return f"by oneDNN, exact (error {error:.0e})"
    torch.set_float32_matmul_precision(before)
    return f"as torch has them: oneDNN would round them (error {error:.0e})"


def name_peak_format(arguments: Mapping[str, Any]) -> str:
    """The number format whose peak this process's matmuls can reach; arguments: as of `find_precision`."""
    import torch

    tf32 = bool(arguments.get("tf32") or torch.backends.cuda.matmul.allow_tf32)
    return find_precision(arguments).peak_format(tf32=tf32)
