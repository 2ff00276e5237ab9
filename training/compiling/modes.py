"""What of a model can be compiled: the values of `perf.compile`, one object each, in `MODES`."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from training.metrics.decoder_modules import is_layer_list

COMPILERS = ("g++", "clang++", "c++")


@dataclass(frozen=True)
class CompileMode:
    """One value of `perf.compile`."""

    name: str
    compiles: str
    """What, in words."""
    graphs: str
    """How many graphs of a training step, in words."""
    find_modules: Callable[[nn.Module], list[nn.Module]]
    """The modules of a causal model (peft's wrapper included) that are compiled, each on its own."""

    def obstacle_here(self, device_type: str) -> str | None:
        """What keeps this mode from running on the machine; None: nothing."""
        if self.name == "off":
            return None
        if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
            return "the environment variable TORCHDYNAMO_DISABLE is 1: unset it"
        return _find_cpu_obstacle() if device_type == "cpu" else _find_gpu_obstacle()


def _find_cpu_obstacle() -> str | None:
    asked = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([asked] if asked else COMPILERS)):
        what = f"CXX = {asked} is no program" if asked else f"there is none of {', '.join(COMPILERS)}"
        return f"on a CPU it needs a C++ compiler, and {what}: install one (apt-get install g++)"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        return f"on a CPU it needs the headers of Python, and there is no {header}: install them (python3-dev)"
    return None


def _find_gpu_obstacle() -> str | None:
    from torch.utils._triton import has_triton

    return None if has_triton() else "it needs Triton, which does not work here: pip install triton"


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The decoder layers."""
    return [layer for module in model.modules() if is_layer_list(module) for layer in module.children()]


def find_inner_model(model: nn.Module) -> list[nn.Module]:
    """The model without its head."""
    base: Any = model
    if hasattr(base, "get_base_model"):  # peft's wrapper
        base = base.get_base_model()
    inner = getattr(base, getattr(base, "base_model_prefix", "") or "", None)
    return [inner] if isinstance(inner, nn.Module) else []


OFF = CompileMode("off", "nothing", "0", lambda model: [])
MODES = (
    OFF,
    CompileMode("blocks", "each decoder layer", "1 for all layers of one kind", find_blocks),
    CompileMode("model", "the model without its head", "1", find_inner_model),
)
AUTO = OFF
"""What `perf.compile: auto` takes: no measurement shows a gain yet (docs/choices.md)."""


def list_names() -> list[str]:
    """All modes, in the order of the docs."""
    return [mode.name for mode in MODES]


def find_mode(requested: str) -> CompileMode:
    """requested: a value of `perf.compile`, `auto` included."""
    return AUTO if requested == "auto" else next(mode for mode in MODES if mode.name == requested)
