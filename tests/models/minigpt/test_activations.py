"""Each activation against its formula in plain Python, forward and derivative."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.activations import XIELUActivation

from training.models.minigpt.activations import ACTIVATIONS, XIELU

POINTS = (-6.0, -1.5, -0.3, 0.2, 1.0, 4.0)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def xielu(x: float) -> float:
    return 0.8 * x * x + 0.5 * x if x > 0 else 0.8 * (math.exp(x) - 1 - x) + 0.5 * x


REFERENCES: dict[str, Callable[[float], float]] = {
    "swiglu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "relu2": lambda x: max(x, 0.0) ** 2,
    "mish": lambda x: x * math.tanh(softplus(x)),
    "xielu": xielu,
}


def build_activation(name: str) -> Any:
    activation = ACTIVATIONS[name]()
    if isinstance(activation, XIELU):
        with torch.no_grad():
            for parameter, value in XIELU.initial_values().items():
                getattr(activation, parameter).fill_(value)
    return activation


def test_every_activation_has_a_reference() -> None:
    assert REFERENCES.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_value_and_derivative_match_the_formula(name: str) -> None:
    activation, reference, h = build_activation(name).double(), REFERENCES[name], 1e-6
    x = torch.tensor(POINTS, dtype=torch.double, requires_grad=True)
    y = activation(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert y.tolist() == pytest.approx([reference(p) for p in POINTS], abs=1e-5)
    assert slope.tolist() == pytest.approx([(reference(p + h) - reference(p - h)) / (2 * h) for p in POINTS], abs=1e-4)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_the_dtype_and_stays_finite(name: str, dtype: torch.dtype) -> None:
    activation = build_activation(name)  # parameters float32, as under autocast
    x = torch.tensor([-100.0, -1e-7, 0.0, 1e-7, 50.0], dtype=dtype, requires_grad=True)
    y = activation(x)
    y.sum().backward()
    assert y.dtype == dtype and x.grad is not None
    assert y.isfinite().all() and x.grad.isfinite().all()


def test_xielu_equals_that_of_transformers_with_gradients_of_both_slopes() -> None:
    ours, theirs = build_activation("xielu"), XIELUActivation(dtype=torch.float32)
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)) * 3
    outputs = [ours(x), theirs._xielu_python(x)]
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(outputs[0], outputs[1])
    for name in ("alpha_p", "alpha_n"):
        torch.testing.assert_close(getattr(ours, name).grad, getattr(theirs, name).grad)
