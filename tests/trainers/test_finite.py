"""What is found before a step, and weights that are not finite are not saved; ranks and engines are in
integration/test_not_finite.py."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from training.data.batch import BatchInfo
from training.run_dir import RunDir
from training.trainers.finite import FiniteCheck, NotFiniteError, check_weights, guard_engine, is_finite


def build_trainer(path, weight: float = 1.0) -> Any:
    model = torch.nn.Linear(2, 1)
    model.weight.data.fill_(weight)
    args = SimpleNamespace(world_size=1, process_index=0, device=torch.device("cpu"), should_save=True)
    rows = SimpleNamespace(describe_rows=lambda ids: f"rows {ids}")
    return SimpleNamespace(
        args=args, model=model, run_dir=RunDir(path), state=SimpleNamespace(global_step=4), train_batches=rows
    )


def fill(check: FiniteCheck, *losses: float) -> FiniteCheck:
    for number, loss in enumerate(losses):
        check.begin(BatchInfo(1, 2, 2, 2, 1, [2], (number,)))
        check.losses.append(torch.tensor(loss, dtype=torch.bfloat16))
    return check


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_of_a_tensor_is_found_wherever_it_is(dtype, value):
    tensor = torch.randn(65).to(dtype)
    assert is_finite(tensor) and is_finite(tensor[:0])
    for place in range(65):
        spoiled = tensor.clone()
        spoiled[place] = value
        assert not is_finite(spoiled)


def test_finite_values_pass_and_others_name_their_micro_batch(tmp_path):
    check = FiniteCheck(build_trainer(tmp_path))
    fill(check, 1.0, 3e38).check(torch.tensor(2.0))
    check.forget()
    with pytest.raises(
        NotFiniteError, match=r"step 5: the loss of micro-batch 2 of 3 is -inf \(rows \(1,\)\); the step"
    ):
        fill(check, 1.0, -math.inf, 2.0).check(torch.tensor(1.0))


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_under_finite_losses(tmp_path, norm):
    check = fill(FiniteCheck(build_trainer(tmp_path)), 1.0)
    with pytest.raises(NotFiniteError, match=rf"the gradient has norm {norm}, though every loss is finite"):
        check.check(norm)


def test_weights_that_were_bad_before_are_said_to_be(tmp_path):
    check = fill(FiniteCheck(build_trainer(tmp_path, weight=math.nan)), math.nan)
    with pytest.raises(NotFiniteError, match="the weights were not finite before it, first weight; no checkpoint"):
        check.check(None)


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    check_weights(build_trainer(tmp_path), "final: not written")
    with pytest.raises(
        NotFiniteError, match="final: not written, the weights are not finite after step 4, first weight"
    ):
        check_weights(build_trainer(tmp_path, weight=math.inf), "final: not written")
    assert '"kind": "not_finite"' in (tmp_path / "events.jsonl").read_text()


@pytest.mark.parametrize(
    ("step", "message"), [(0, "that training starts from are not finite"), (4, "are not finite after step 4")]
)
def test_before_the_run_is_opened_nothing_is_written(tmp_path, step, message):
    trainer = build_trainer(tmp_path, weight=math.nan)
    trainer.state.global_step = step
    with pytest.raises(NotFiniteError, match=f"no step is taken, the weights {message}.*, first weight"):
        check_weights(trainer, "no step is taken", is_open=False)
    assert list(tmp_path.iterdir()) == []


class PlainEngine:
    """DeepSpeed without ZeRO in float32: a torch optimizer, which checks nothing."""

    def __init__(self, gradient: float) -> None:
        self.module = torch.nn.Linear(2, 1)
        self.optimizer = torch.optim.SGD(self.module.parameters())
        self.skipped_steps = self.taken = 0
        for parameter in self.module.parameters():
            parameter.grad = torch.full_like(parameter, gradient)

    def fp16_enabled(self) -> bool:
        return False

    def step(self) -> None:
        self.taken += 1


@pytest.mark.parametrize("gradient", [1.0, math.nan])
def test_an_engine_that_checks_nothing_is_checked(tmp_path, gradient):
    engine = PlainEngine(gradient)
    guard_engine(engine, fill(FiniteCheck(build_trainer(tmp_path)), 1.0))
    if math.isfinite(gradient):
        engine.step()
    else:
        with pytest.raises(NotFiniteError, match="the gradient has norm nan"):
            engine.step()
    assert engine.taken == math.isfinite(gradient)
