"""Which kernel is chosen on machines that this one only pretends to be."""

import dataclasses
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma2Config, GptOssConfig, Qwen2Config

from data_prep.errors import UserError
from tests.models.tiny import SHAPE, build_tiny, tiny_minigpt
from training.attention import kernels
from training.attention.choose import choose_attention, find_model_class, find_usable, needs_cu_seqlens
from training.attention.kernels import Compute
from training.kernels.cpu import build

CUDA_BF16 = Compute("cuda", torch.bfloat16, packed=True)
CPU = Compute("cpu", torch.bfloat16, packed=False)


def pretend(monkeypatch: pytest.MonkeyPatch, installed: set[str], capability: tuple[int, int]) -> None:
    pretended = [
        dataclasses.replace(kernel, is_available=lambda name=kernel.name: name in installed)
        if isinstance(kernel, kernels.Flash)
        else kernel
        for kernel in kernels.KERNELS
    ]
    monkeypatch.setattr(kernels, "KERNELS", tuple(pretended))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)


@pytest.mark.parametrize(
    ("installed", "capability", "expected"),
    [
        ({"flash_attention_2", "flash_attention_3"}, (9, 0), "flash_attention_3"),
        ({"flash_attention_2"}, (9, 0), "flash_attention_2"),
        ({"flash_attention_2", "flash_attention_3"}, (10, 0), "flash_attention_2"),  # Blackwell: 3 has no kernels
        ({"flash_attention_2", "flash_attention_3", "torch_varlen"}, (7, 5), "sdpa"),
        ({"flash_attention_2", "torch_varlen"}, (9, 0), "flash_attention_2"),
        ({"torch_varlen"}, (9, 0), "torch_varlen"),
        (set(), (9, 0), "sdpa"),
    ],
)
def test_auto_takes_the_best_that_fits(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], capability: tuple[int, int], expected: str
) -> None:
    pretend(monkeypatch, installed, capability)
    assert choose_attention("auto", CUDA_BF16)[0] == expected


@pytest.mark.parametrize(
    ("installed", "capability", "expected"),
    [
        ({"flash_attention_2", "torch_varlen"}, (9, 0), "torch_varlen"),
        ({"flash_attention_2", "flash_attention_3", "torch_varlen"}, (9, 0), "flash_attention_3"),
        ({"flash_attention_2", "torch_varlen"}, (8, 0), "flash_attention_2"),
    ],
)
def test_rows_of_one_document_go_to_cudnn_where_pytorch_prefers_it(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], capability: tuple[int, int], expected: str
) -> None:
    pretend(monkeypatch, installed, capability)
    name, reason = choose_attention("auto", dataclasses.replace(CUDA_BF16, packed=False))
    assert name == expected
    passed_over = "no flash_attention_2: rows of one document each are faster by cuDNN" in reason
    assert passed_over == (expected == "torch_varlen")


def test_auto_in_float32_or_on_a_cpu_is_no_flash_attention_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(monkeypatch, {"flash_attention_2", "flash_attention_3"}, (9, 0))
    with caplog.at_level("INFO", logger="redline.models"):
        implementation, reason = choose_attention("auto", dataclasses.replace(CUDA_BF16, dtype=torch.float32))
        assert implementation == "sdpa" and "this run in float32" in reason
        implementation, reason = choose_attention("auto", CPU)
        assert implementation == "redline_cpu" and "this run is on cpu" in reason
    assert caplog.messages[-1] == f"attention: redline_cpu ({reason})"


def test_without_a_compiler_a_cpu_takes_sdpa_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_obstacle", lambda: "the CPU kernels need a C++ compiler")
    implementation, reason = choose_attention("auto", CPU)
    assert implementation == "sdpa" and "no redline_cpu: the CPU kernels need a C++ compiler" in reason
    with pytest.raises(UserError, match="'redline_cpu' cannot be used: the CPU kernels need a C"):
        choose_attention("redline_cpu", CPU)


def test_kernels_that_do_not_build_are_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "load", lambda: "the CPU kernels could not be built: no header")
    implementation, reason = choose_attention("auto", CPU)
    assert implementation == "sdpa" and "no redline_cpu: the CPU kernels could not be built: no header" in reason
    assert choose_attention("auto", CPU, is_planned=True)[0] == "redline_cpu"  # nothing is built for a plan
    with pytest.raises(UserError, match="'redline_cpu' cannot be used: the CPU kernels could not be built"):
        choose_attention("redline_cpu", CPU)


def test_reason_names_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, set(), (9, 0))
    reason = choose_attention("auto", CUDA_BF16)[1]
    assert "no flash_attention_2: not installed (pip install -r requirements-gpu.txt)" in reason
    assert "seq_len x seq_len" in reason


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_explicit_plain_ones_always_work(name: str) -> None:
    assert choose_attention(name, CPU) == (name, "asked for")


@pytest.mark.parametrize(
    ("name", "compute", "message"),
    [
        ("flash_attention_2", CUDA_BF16, "not installed .pip install -r requirements-gpu.txt"),
        ("flash_attention_2", CPU, "needs a CUDA device and this run is on cpu"),
        ("flash_attention_4", CUDA_BF16, "not installed .pip install flash-attn-4"),
        ("flex_attention", CPU, "no backward pass outside CUDA"),
        ("spda", CPU, "did you mean 'sdpa'"),
        ("zzz", CPU, "unknown, one of auto, flash_attention_3"),
    ],
)
def test_explicit_ones_that_cannot_run_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, compute: Compute, message: str
) -> None:
    pretend(monkeypatch, set(), (9, 0))
    with pytest.raises(UserError, match=message):
        choose_attention(name, compute)


GEMMA2 = find_model_class(Gemma2Config())
GPT_OSS = find_model_class(GptOssConfig())
QWEN2 = find_model_class(Qwen2Config())


@pytest.mark.parametrize(
    ("model_class", "name", "reason"),
    [
        (QWEN2, "redline_cpu", "no FlashAttention: it needs a CUDA device and this run is on cpu"),
        (GEMMA2, "eager", "no redline_cpu and sdpa: Gemma2ForCausalLM of transformers does not run with it"),
        (GPT_OSS, "eager", "no redline_cpu and sdpa: GptOssForCausalLM of transformers does not run with it"),
        (None, "redline_cpu", "no FlashAttention"),
    ],
)
def test_auto_takes_what_the_model_runs_with(model_class: Any, name: str, reason: str) -> None:
    chosen, why = choose_attention("auto", CPU, model_class)
    assert chosen == name and reason in why


def test_auto_never_takes_what_the_model_does_not_run_with_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"flash_attention_2", "flash_attention_3"}, (9, 0))
    assert choose_attention("auto", CUDA_BF16, GEMMA2)[0] == "flash_attention_3"
    chosen, why = choose_attention("auto", CUDA_BF16, GPT_OSS)
    assert chosen == "eager"
    assert "no flash_attention_3 and flash_attention_2 and sdpa: GptOssForCausalLM of transformers does not" in why


@pytest.mark.parametrize("model_class", [GEMMA2, GPT_OSS])
def test_what_the_model_does_not_run_with_is_refused_by_name(model_class: Any) -> None:
    with pytest.raises(UserError, match=r"'sdpa' cannot be used: \w+ of transformers does not run with it; or use"):
        choose_attention("sdpa", CPU, model_class)
    assert choose_attention("eager", CPU, model_class)[0] == "eager"


@pytest.mark.parametrize("model_type", ["gemma2", "gpt_oss", "qwen2"])
def test_such_a_model_is_built_by_auto(model_type: str) -> None:
    model = build_tiny({"config": {"model_type": model_type, **SHAPE, "head_dim": 16}})
    assert model.config._attn_implementation == ("redline_cpu" if model_type == "qwen2" else "eager")


def test_the_order_is_that_of_the_tuple() -> None:
    assert [kernel.name for kernel in find_usable(CPU)] == ["redline_cpu", "sdpa", "eager"]


def test_only_models_that_hand_arguments_on_get_the_boundaries_of_documents() -> None:
    class Plain(torch.nn.Module):
        def forward(self, input_ids, position_ids=None):
            return input_ids

    model = tiny_minigpt()
    model.config._attn_implementation = "flash_attention_2"
    assert needs_cu_seqlens(model) and needs_cu_seqlens(get_peft_model(model, LoraConfig(target_modules=["q_proj"])))
    assert not needs_cu_seqlens(Plain())


def test_kernels_that_read_a_mask_get_no_boundaries_but_for_layers_of_another_kind() -> None:
    model = tiny_minigpt()
    model.config._attn_implementation = "sdpa"
    assert not needs_cu_seqlens(model)
    model.config.layer_types = ["linear_attention", "full_attention"]
    assert needs_cu_seqlens(model)
