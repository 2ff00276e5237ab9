"""docs/choices.md is what the code has, and a new choice gets its row without another line."""

from pathlib import Path

from training import precision
from training.attention import kernels
from training.attention.kernels import AttentionKernel
from training.choices import build_page
from training.optim import optimizers
from training.optim.facts import Optimizer, Package
from training.precision import Precision


def test_the_page_is_what_the_code_has():
    page = Path(__file__).parents[1] / "docs" / "choices.md"
    assert page.read_text(encoding="utf-8") == build_page(), "run: python -m training.choices > docs/choices.md"


def test_rows_by_hand():
    lines = build_page().splitlines()
    assert "| float32 | neither of the others | cpu, cuda | as it is | float32 | tfloat32 | 4.9e-04 |" in lines
    sdpa = next(line for line in lines if line.startswith("| `sdpa`"))
    assert "| yes | a mask made from `position_ids` | 64 |" in sdpa
    assert sdpa.endswith("| 4 bytes per head and query (the log-sum-exp) |")
    sgd = "| `sgd` | `training.optim` and the JSON (of torch) | 0, 4 more with momentum | 0, 4 more with momentum |  |"
    assert f"{sgd} momentum, dampening, nesterov |" in lines
    assert "| `adamw_8bit` | `training.optim` | 2.031 | 2.031 | bitsandbytes |  |" in lines


def test_new_choices_have_rows(monkeypatch):
    monkeypatch.setattr(precision, "PRECISIONS", (Precision("int7", "i7", 0.5, 0.1), *precision.PRECISIONS))
    monkeypatch.setattr(kernels, "KERNELS", (AttentionKernel("made_up"), *kernels.KERNELS))
    new = Optimizer("newton", 7, packages=(Package("newton", "newton>=1"),))
    monkeypatch.setattr(optimizers, "OPTIMIZERS", (new, *optimizers.OPTIMIZERS))
    lines = build_page().splitlines()
    assert "| int7 | `training.i7` | cpu, cuda | as it is | int7 | int7 | 5.0e-01 |" in lines
    assert any(line.startswith("| `made_up` | yes | a mask made from `position_ids` | 20 |") for line in lines)
    assert "| `newton` | `training.optim` | 28 | 28 | newton>=1 |  |" in lines
