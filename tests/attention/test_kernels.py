"""Every kernel is one object that all who ask about kernels find, and every usable one computes what eager does."""

from typing import Any

import pytest
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.metrics.decoders import build_decoder
from training.attention import kernels
from training.attention.choose import choose_attention, find_usable
from training.attention.kernels import KERNELS, AttentionKernel, Compute, find_kernel
from training.attention.pairs import Attended
from training.benchmark.advise.levers import Baseline, list_variants
from training.config import load_config
from training.data.collator import Collator
from training.data.dataset import Row
from training.memory.run_plan import Planner
from training.metrics.flops import ModelFlops
from training.models.planned import build_planned_model

WIDTH = 32  # heads x head size of `build_decoder`
HERE = Compute("cuda" if torch.cuda.is_available() else "cpu", torch.float32, packed=True)


def test_names_are_those_of_transformers():
    known = {"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()}
    assert {kernel.name for kernel in KERNELS} <= known
    assert len({kernel.name for kernel in KERNELS}) == len(KERNELS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_whatever_is_chosen_is_in_the_tuple(device_type, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    for name in ("auto", *(kernel.name for kernel in find_usable(Compute(device_type, dtype, True)))):
        assert choose_attention(name, Compute(device_type, dtype, True))[0] in {kernel.name for kernel in KERNELS}


def run_packed(name: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits and gradients of a packed batch of two rows, three documents and padding, float32."""
    torch.manual_seed(0)
    model: Any = build_decoder("qwen2").to(HERE.device_type)
    model.set_attn_implementation(name)
    ids = torch.arange(1, 25, dtype=torch.int32).numpy()
    rows = [Row(ids[:16], ids[:16].astype("int64"), [10, 6]), Row(ids[16:], ids[16:].astype("int64"), [8])]
    batch = Collator(0, 16, 1, "best_fit", varlen=find_kernel(name).needs_cu_seqlens)(rows)
    del batch["batch_info"]
    batch = {key: value.to(HERE.device_type) if torch.is_tensor(value) else value for key, value in batch.items()}
    outputs = model(**batch, use_cache=False)
    outputs.loss.backward()
    real = torch.cat([outputs.logits[0], outputs.logits[1, :8]]).detach()
    return real, [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("kernel", [one for one in KERNELS if one.obstacle(HERE) is None], ids=lambda one: one.name)
def test_a_usable_kernel_agrees_with_eager_on_packed_rows(kernel):
    logits, gradients = run_packed(kernel.name)
    expected, expected_gradients = run_packed("eager")
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(gradients, expected_gradients, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "packed", "whole"),
    [
        ("eager", 128, 128),
        ("sdpa", 128, 72),
        ("flash_attention_2", 56, 72),
        ("flex_attention", 56, 72),
        ("hub", 56, 72),
    ],
)
def test_executed_pairs_of_two_rows_of_8_tokens(name, packed, whole):
    """Packed: documents of 8, 4 and 4 tokens, 36 + 10 + 10 pairs. Whole: 2 x 36."""
    kernel = find_kernel(name)
    assert kernel.executed_pairs(Attended(56, 3, 2, 8, None)) == packed
    assert kernel.executed_pairs(Attended(72, 2, 2, 8, None)) == whole


class MadeUp(AttentionKernel):
    """Executes a thousand pairs, whatever the batch."""

    def executed_pairs(self, attended: Attended) -> int:
        return 1000


@pytest.fixture
def made_up(monkeypatch):
    """A kernel that is better than all others."""
    kernel = MadeUp("made_up", needs_cu_seqlens=True)
    monkeypatch.setattr(kernels, "KERNELS", (kernel, *KERNELS))
    ALL_ATTENTION_FUNCTIONS.register("made_up", ALL_ATTENTION_FUNCTIONS["sdpa"])
    ALL_MASK_ATTENTION_FUNCTIONS.register("made_up", sdpa_mask)
    yield kernel
    for functions in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        del functions._global_mapping["made_up"]


def test_a_new_kernel_is_known_everywhere_without_another_line(made_up):
    assert choose_attention("auto", HERE) == ("made_up", "best that is installed and fits this device")

    loaded = load_config(["--config", "debug", "model.kind=minigpt"])
    planner = Planner(loaded, lambda *given: build_planned_model(loaded.config, *given), 1, on_gpu=False)
    assert planner.attention is made_up.stand_in(masked=True)
    assert "auto is planned as made_up" in planner.attention_note

    model: Any = build_decoder("qwen2")
    before = ModelFlops.from_model(model).count([4, 4], 8, 8, rows=1)
    model.config._attn_implementation = "made_up"
    after = ModelFlops.from_model(model).count([4, 4], 8, 8, rows=1)
    per_pair = 4 * 2 * WIDTH * 2  # layers, score and value sum of so many features, two FLOPs each
    assert after.forward - before.forward == per_pair * (1000 - 8 * 8)

    variants, _ = list_variants(Baseline(load_config(["--config", "debug"]), 1, HERE.device_type, 1), ["attention"])
    assert [variant.label for variant in variants] == ["redline_cpu", "sdpa", "eager"]  # it is the one in use
    base = Baseline(load_config(["--config", "debug", "--attn_implementation", "sdpa"]), 1, HERE.device_type, 1)
    assert [variant.label for variant in list_variants(base, ["attention"])[0]] == ["made_up", "redline_cpu", "eager"]
