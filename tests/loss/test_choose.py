"""Which loss kernel a run gets, and the error where it cannot have one."""

import importlib.util
import logging
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from data_prep.errors import UserError
from training.benchmark.advise.levers import LEVERS
from training.choices import build_page
from training.loss import kernels
from training.loss.choose import check_loss, choose_loss, find_usable, install_loss
from training.loss.head import find_loss_head
from training.loss.kernels import KERNELS, LossKernel
from training.loss.terms import PLAIN, LossTerms
from training.metrics.flops import ModelFlops


def build() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
        )  # fmt: skip
    )


def test_auto_takes_the_chunked_one_and_says_why(caplog):
    with caplog.at_level(logging.INFO, logger="redline.models"):
        assert install_loss(build(), "auto", device_type="cpu").name == "chunked"
    assert caplog.messages == ["loss: chunked (logits of one chunk of rows, the head's gradient)"]


def test_auto_falls_back_with_the_reason():
    model = build()
    model.config.logit_scale = 0.5
    kernel, reason = choose_loss("auto", model, PLAIN, "cpu")
    assert kernel.name == "plain" and reason == "no chunked: logit_scale = 0.5 changes its logits"
    with pytest.raises(UserError, match="'chunked' cannot be used: no chunked: logit_scale = 0.5"):
        choose_loss("chunked", model, PLAIN, "cpu")


def test_plain_leaves_the_model_as_it_is():
    model = build()
    install_loss(model, "plain", device_type="cpu")
    assert find_loss_head(model) is None and not model._forward_pre_hooks


@pytest.mark.parametrize(
    ("name", "terms", "device", "message"),
    [
        ("chunkd", PLAIN, "cpu", "'chunkd' is unknown: did you mean 'chunked'"),
        ("fused", PLAIN, "cpu", "unknown: use one of auto, chunked, plain, liger, cce"),
        ("liger", PLAIN, "cpu", "'liger' cannot be used: it needs a CUDA device and this run is on cpu"),
        ("cce", PLAIN, "cuda", r"not installed \(pip install cut-cross-entropy\)"),
        ("cce", LossTerms(0.1), "cuda", "it has no label smoothing and no z-loss"),
    ],
)
def test_what_cannot_run_is_refused(name, terms, device, message, monkeypatch):
    found = None if terms.is_plain else object()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(UserError, match=message):
        check_loss(name, terms, device)


def test_positions_without_loss_cost_no_head_on_a_cpu():
    model, plain = build(), build()
    install_loss(model, "chunked", device_type="cpu")
    few, all_positions = (ModelFlops.from_model(one).count([8], 8, 3, rows=1) for one in (model, plain))
    head = 6 * 64 * 16
    assert all_positions.hardware - few.hardware == head * (8 - 3)


@dataclass(frozen=True)
class Double(LossKernel):
    """A kernel that somebody adds."""

    def compute(self, hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, terms: LossTerms) -> Tensor:
        return 2 * nn.functional.cross_entropy(hidden @ weight.t(), labels, reduction="sum") * terms.scale


def test_a_new_kernel_appears_everywhere(monkeypatch):
    monkeypatch.setattr(kernels, "KERNELS", (Double("double", computes_logits_twice=True), *KERNELS))
    model, plain = build(), build()
    assert install_loss(model, "auto", device_type="cpu").name == "double"
    ids = torch.randint(0, 64, (2, 8))
    assert model(input_ids=ids, labels=ids).loss.item() == pytest.approx(
        2 * plain(input_ids=ids, labels=ids).loss.item(), rel=1e-5
    )
    counts = [ModelFlops.from_model(one).count([8], 8, 8, rows=1) for one in (model, plain)]
    assert counts[0].hardware - counts[1].hardware == 2 * 64 * 16 * 8 and counts[0].model == counts[1].model
    assert "| `double` | yes |" in build_page()
    assert [kernel.name for kernel in find_usable(PLAIN, "cpu")] == ["double", "chunked", "plain"]
    assert "loss-kernel" in LEVERS
