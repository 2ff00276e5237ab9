"""MLP activations of MiniGPT by name: `swiglu` (gated), `gelu`, `relu2`, `mish`, `xielu`.

`GATED` says which ones multiply a second projection: MLP(x) = down(act(gate(x)) * up(x)) instead of down(act(up(x))).
At equal `intermediate_size` a gated MLP has 1.5 times the weights; `MiniGPTConfig` evens that out by default.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional


class ReLU2(nn.Module):
    """relu(x)**2 (Primer, arXiv 2109.08668)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Elementwise."""
        return functional.relu(x).square()


class XIELU(nn.Module):
    """xIELU with trainable slopes (arXiv 2411.13010, equation 7), elementwise, output in the input's dtype.

        x > 0:   alpha_p * x**2 + beta * x
        x <= 0:  alpha_n * (exp(x) - 1 - x) + beta * x

    with alpha_p = softplus(a_p) and alpha_n = beta + softplus(a_n), both 0.8 at the start, and beta = 0.5. Parameter
    names and values are those of transformers' `XIELUActivation`, which is not used because it creates its parameters
    in bfloat16, sets them outside `_init_weights`, saves two constants as buffers, promotes bfloat16 inputs to
    float32 under autocast, and warns that an optional CUDA wheel is missing.
    """

    BETA = 0.5
    ALPHA = 0.8
    EPS = -1e-6  # keeps the gradient of expm1 at 0 finite in low precision

    def __init__(self) -> None:
        super().__init__()
        self.alpha_p = nn.Parameter(torch.empty(1))
        self.alpha_n = nn.Parameter(torch.empty(1))

    @classmethod
    def initial_values(cls) -> dict[str, float]:
        """Raw parameter values whose softplus gives ALPHA; set by `_init_weights`, so meta and ZeRO-3 builds work."""
        return {
            "alpha_p": math.log(math.expm1(cls.ALPHA)),
            "alpha_n": math.log(math.expm1(cls.ALPHA - cls.BETA)),
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Elementwise, in the type of `x`."""
        alpha_p = functional.softplus(self.alpha_p).to(x.dtype)
        alpha_n = (self.BETA + functional.softplus(self.alpha_n)).to(x.dtype)
        negative = torch.expm1(x.clamp(max=self.EPS)) - x
        return torch.where(x > 0, alpha_p * x * x, alpha_n * negative) + self.BETA * x


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "swiglu": nn.SiLU,
    "gelu": nn.GELU,
    "relu2": ReLU2,
    "mish": nn.Mish,
    "xielu": XIELU,
}
GATED = frozenset({"swiglu"})
