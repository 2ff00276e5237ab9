"""Which models are counted, which of their passes, and what a pass is counted as."""

import logging
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from training.metrics import names
from training.trainers.forward_counter import ForwardCounter, find_flops, find_models

CONFIG: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


class Meter:
    """Keeps the passes that it is told of, in the phase `forward`."""

    def __init__(self) -> None:
        self.timer = SimpleNamespace(phase=names.FORWARD)
        self.passes: list[Any] = []

    def add_forward(self, forward: Any) -> None:
        self.passes.append(forward)


class Wrapper(nn.Module):
    """As DDP wraps: what the loop calls is not what holds the weights."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def build_trainer(**others: Any) -> Any:
    model = Qwen2ForCausalLM(Qwen2Config(**CONFIG))
    unwrap = lambda module: getattr(module, "module", module)  # noqa: E731
    return SimpleNamespace(
        meter=Meter(), model=model, model_wrapped=Wrapper(model), is_training=True,
        args=SimpleNamespace(gradient_checkpointing=False), accelerator=SimpleNamespace(unwrap_model=unwrap), **others,
    )  # fmt: skip


def test_a_pass_of_the_wrapped_model_is_counted_once_with_its_documents():
    trainer = build_trainer()
    ForwardCounter(trainer).start()
    trainer.model_wrapped(input_ids=IDS, attention_mask=MASK)
    (forward,) = trainer.meter.passes
    assert forward.shape.document_lengths() == [4, 2] and forward.with_backward
    work = forward.count()
    assert (work.tokens, work.useful_tokens, work.micro_batches) == (8, 6, 1)


def test_tokens_as_a_positional_argument_are_counted():
    trainer = build_trainer()
    ForwardCounter(trainer).start()
    trainer.model_wrapped(IDS)
    assert trainer.meter.passes[0].shape.document_lengths() == [4, 4]


def test_a_pass_without_gradients_trains_on_no_token():
    trainer = build_trainer()
    ForwardCounter(trainer).start()
    with torch.no_grad():
        trainer.model_wrapped(input_ids=IDS)
    work = trainer.meter.passes[0].count()
    assert work.model_flops > 0 and (work.useful_tokens, work.micro_batches) == (0, 0)


def test_passes_outside_the_forward_phase_or_of_an_evaluation_are_not_counted():
    trainer = build_trainer()
    ForwardCounter(trainer).start()
    trainer.meter.timer.phase = names.EVAL
    trainer.model_wrapped(input_ids=IDS)
    trainer.meter.timer.phase, trainer.is_training = names.FORWARD, False
    trainer.model_wrapped(input_ids=IDS)
    assert trainer.meter.passes == []


def test_hooks_are_replaced_by_a_second_start_and_taken_away_by_stop():
    trainer = build_trainer()
    counter = ForwardCounter(trainer)
    counter.start()
    counter.start()
    trainer.model_wrapped(input_ids=IDS)
    counter.stop()
    trainer.model_wrapped(input_ids=IDS)
    assert len(trainer.meter.passes) == 1
    assert not trainer.model_wrapped._forward_pre_hooks


def test_nothing_is_hooked_where_nothing_is_measured():
    trainer = build_trainer()
    trainer.meter = None
    ForwardCounter(trainer).start()
    assert not trainer.model_wrapped._forward_pre_hooks


def test_models_that_the_trainer_holds_beside_its_own_are_found():
    teacher = Qwen2ForCausalLM(Qwen2Config(**CONFIG))
    trainer = build_trainer(teacher=teacher)
    trainer.inside = trainer.model.model  # a part of the model itself is none of them
    assert find_models(trainer) == [trainer.model_wrapped, teacher]


def test_a_batch_without_tokens_is_not_counted():
    trainer = build_trainer()
    trainer.model_wrapped = trainer.model = nn.Identity()
    ForwardCounter(trainer).start()
    trainer.model_wrapped(torch.zeros(3))  # no second dimension
    assert trainer.meter.passes == []


def test_flops_of_a_model_without_causal_attention_are_not_known(caplog):
    with caplog.at_level(logging.WARNING, logger="redline.train"):
        assert find_flops(nn.Linear(2, 2)) is None
    assert caplog.messages[0].startswith("Linear: no MFU")
