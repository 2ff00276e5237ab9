"""Traps that published formulas and well-known trainers have fallen into, each with a case worked out by hand.

Every number is written out; the naive formula's is shown next to ours. The model is a Llama with hidden size 8, an MLP
of 16, 2 heads of 4 (1 for keys and values), 2 layers and a vocabulary of 10:

    q 8x8 = 64, k 8x4 = 32, v 8x4 = 32, o 8x8 = 64, gate, up and down 3 x 8x16 = 384     576 weights a layer
    two layers 1152, head 8x10 = 80                                                     1232 weights = N
    trained in full: 6 N = 7392 FLOPs a token
    attention, width 8, a query-key pair: 2x8 score + 2x8 sum = 32 forward, 64 backward: 96 a layer, 192 in two

There is more elsewhere: LoRA, packing and checkpointing against FLOPs executed (`test_flops.py`), the ratios of a
window (`test_throughput.py`), names in the table of peaks (`test_peaks.py`), tokens/s of a resumed run
(`tests/integration/test_resume.py`).
"""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2MoeConfig

from tests.metrics.test_phase_timer import HandClock
from training.activations.modes import FULL
from training.metrics import names
from training.metrics.flops import ModelFlops
from training.metrics.peaks import Peak, find_peak
from training.metrics.phase_timer import PhaseTimer
from training.metrics.throughput import Meter, Rates
from training.precision import find_precision
from training.trainers import meter as build

SHAPE: dict[str, Any] = {
    "vocab_size": 10, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip


def build_llama(**changes: Any) -> Any:
    return AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, **changes), attn_implementation="sdpa")


def count(model: Any, documents: list[int], **kwargs: Any) -> Any:
    tokens = sum(documents)
    return ModelFlops.from_model(model).count(documents, tokens, tokens, rows=1, **kwargs)


# -- work --------------------------------------------------------------------------------------------------------------


def test_lora_is_neither_six_n_nor_four_n():
    """LoRA of rank 2 on q and v of the upper layer only, a document of 4 tokens.

    per token   lower layer, nothing trained in or below it: forward, 2 x 576               1152
                upper q, k, v: their input needs no gradient, 2 x (64 + 32 + 32)             256
                A of q and of v, 8x2: forward and weight gradient, 4 x 16 each               128
                B of q, 2x8, and of v, 2x4: 6 x 16 + 6 x 8                                   144
                o, MLP and head, frozen, with input gradients: 4 x (64 + 384 + 80)          2112
                                                                                            3792
    per pair    lower layer forward 32; upper layer 32 + dV 16 + dP 16 + dQ 16, no dK: 80    112
    """
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], layers_to_transform=[1], task_type="CAUSAL_LM")
    ours = count(get_peft_model(build_llama(), lora), [4]).model
    assert ours == 4 * 3792 + 112 * (1 + 2 + 3 + 4) == 16288
    naive = 6 * (1232 + 56) * 4  # all weights and the 16 + 16 + 16 + 8 of the adapters
    assert naive == 30912  # 1.9 times as much


def test_packed_documents_do_not_attend_across_the_row():
    """Documents of 2 and 6 in a row of 8: (1 + 2) + (1 + ... + 6) = 24 pairs."""
    found = count(build_llama(), [2, 6])
    linear = 8 * 7392
    assert linear == 59136
    assert found.model == 59136 + 192 * 24 == 63744
    assert found.palm == 59136 + 192 * (2 * 2 + 6 * 6) == 66816  # un-halved, as papers have it, is a key of its own
    whole_row, un_halved_row = 59136 + 192 * 36, 59136 + 192 * 64
    assert (whole_row, un_halved_row) == (66048, 71424)  # naive: 4 % and 12 % too much, more the longer the row


def test_only_the_active_experts_count():
    """One layer of 4 experts, 2 of them active, and a shared one; a document of 4 tokens.

    attention 192, router 8x4 = 32, an expert 3 x 8x4 = 96, shared 3 x 8x6 = 144 with its gate 8x1 = 8, head 80.
    """
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 4, "decoder_sparse_step": 1}
    shape: dict[str, Any] = SHAPE | experts | {"num_hidden_layers": 1, "shared_expert_intermediate_size": 6}
    config = Qwen2MoeConfig(**shape)
    ours = count(AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"), [4]).model
    active, all_experts = 192 + 32 + 2 * 96 + 144 + 8 + 80, 192 + 32 + 4 * 96 + 144 + 8 + 80
    assert (active, all_experts) == (648, 840)
    assert ours == 6 * 648 * 4 + 96 * 10 == 16512
    assert 6 * 840 * 4 + 96 * 10 == 21120  # naive: 28 % too much here, five times as much with 8 of 256 experts


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_is_multiplied_and_an_embedding_is_looked_up(tied):
    """Tied or not, N is the same 1232: what is multiplied, not what is stored."""
    model = build_llama(tie_word_embeddings=tied)
    assert count(model, [1]).model == 6 * 1232 + 192 == 7584
    stored = sum(parameter.numel() for parameter in model.parameters())
    norms = 5 * 8
    assert stored == 1152 + (1 if tied else 2) * 80 + norms
    # Naive: 6 x all parameters takes an embedding for a product; 6 x those that are no embedding loses a tied head.
    assert 6 * (1152 + 2 * 80 + norms) == 8112
    assert 6 * 1152 == 6912


def test_recomputation_is_no_work_of_the_model():
    """Checkpointed layers, a document of 4 tokens: 10 pairs.

    again in backward   each layer but its last product, down: 2 x (576 - 128) = 896, in two layers 1792 a token
    per pair            a flash backward computes the scores again, 16 a layer; checkpointing all of forward, 32 a layer
    """
    model = build_llama()
    FULL.apply(model)
    found = count(model, [4])
    assert found.model == 7392 * 4 + 192 * 10 == 31488
    assert found.hardware == (7392 + 1792) * 4 + (192 + 2 * 16 + 2 * 32) * 10 == 39616
    assert 8 * 1232 * 4 == 39424  # naive: "8 N" as MFU, a third above 6 N; it is what HFU is for


# -- time --------------------------------------------------------------------------------------------------------------


class Session:
    """A meter with a clock that is set by hand; against 1e6 FLOP/s unless told."""

    def __init__(self, peak_tflops: float = 1e-6, peak: Peak | None = None):
        self.clock = HandClock()
        peak = peak or Peak(peak_tflops, "measured", "hand", "float32")
        self.meter = Meter(PhaseTimer(self.clock), model_flops=ModelFlops.from_model(build_llama()), rates=Rates(peak))
        self.meter.timer.start()

    def micro_batch(self, documents: list[int], *, tokens: int, seconds: float) -> None:
        """One row of `tokens` positions."""
        useful = sum(documents)
        self.meter.add(documents, rows=1, tokens=tokens, useful_tokens=useful, loss_tokens=useful)
        with self.meter.timer.span(names.FORWARD):
            self.clock.now += seconds


def test_all_micro_batches_count_over_the_time_of_the_step():
    """4 micro-batches of documents of 2 and 6 (63744 FLOPs), 1 s each, against 1e6 FLOP/s."""
    session = Session()
    for _ in range(4):
        session.micro_batch([2, 6], tokens=8, seconds=1.0)
    session.meter.end_step()
    window = session.meter.window()
    assert window[names.PERF_MFU_PCT] == pytest.approx(6.3744)  # 4 x 63744 FLOPs in 4 s
    assert window[names.PERF_TOKENS_PER_SECOND] == 8
    naive = 100 * 63744 / (4.0 * 1e6)
    assert naive == pytest.approx(1.5936)  # one micro-batch over the time of all: 4 times too low


def test_after_a_resume_tokens_are_those_of_this_window():
    """A run with 1,000,000 tokens behind it does 8 in its first half second."""
    session = Session()
    session.micro_batch([2, 6], tokens=8, seconds=0.5)
    session.meter.end_step()
    assert session.meter.window()[names.PERF_TOKENS_PER_SECOND] == 16
    session.micro_batch([8], tokens=8, seconds=1.0)
    session.meter.end_step()
    assert session.meter.window()[names.PERF_TOKENS_PER_SECOND] == 8
    naive = [(1_000_000 + 8) / 0.5, (1_000_000 + 16) / 1.5]  # all tokens over this session's clock
    assert naive == [pytest.approx(2_000_016), pytest.approx(666_677.3, rel=1e-6)]


def test_padding_is_not_trained_on():
    """5 tokens and 3 of padding, half a second: 5 x 7392 + 192 x 15 = 39840 FLOPs."""
    session = Session()
    session.micro_batch([5], tokens=8, seconds=0.5)
    session.meter.end_step()
    window = session.meter.window()
    assert window[names.PERF_TOKENS_PER_SECOND] == 10
    assert window[names.PERF_USEFUL_TOKENS_PCT] == 62.5
    assert window[names.PERF_MFU_PCT] == pytest.approx(100 * 39840 / (0.5 * 1e6)) == pytest.approx(7.968)
    naive_tokens, naive_flops = 8 / 0.5, 8 * 7392 + 192 * 36
    assert (naive_tokens, naive_flops) == (16, 66048)  # positions, not tokens: MFU would be 13.2 %


# -- the rate that MFU is against --------------------------------------------------------------------------------------


def build_gpu_meter(monkeypatch, device_name: str) -> Meter:
    """The meter of a run on a GPU of that name; what would be measured there is 200 TFLOP/s."""
    measured = Peak(200.0, "measured", device_name, "bfloat16", spread_pct=1.0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: device_name)
    monkeypatch.setattr(build.Calibrator, "find_machine_peak", lambda self: measured)
    monkeypatch.setattr(build.Calibrator, "find_model_ceiling", lambda *_: None)
    args: Any = SimpleNamespace(
        device=torch.device("cuda"), bf16=True, fp16=False, tf32=None, per_device_train_batch_size=1, process_index=0,
    )  # fmt: skip
    return build.build_meter(build_llama(), args, seq_len=8)


def test_an_unknown_gpu_has_no_datasheet_rate_and_says_so(monkeypatch, caplog):
    """MFU is against what was measured there, not against the 312 of an A100 that others fall back to."""
    with caplog.at_level(logging.INFO, logger="redline.build"):
        meter = build_gpu_meter(monkeypatch, "NVIDIA H900 Ti")
    assert meter.peak is not None and (meter.peak.tflops, meter.peak.source) == (200.0, "measured")
    assert "200.00 TFLOP/s per device: measured (NVIDIA H900 Ti" in caplog.text


def test_an_l40s_is_not_an_l4(monkeypatch):
    """The names share a prefix, the rates differ three times. One token: 6 N + 192 = 7584 FLOPs."""
    peak = build_gpu_meter(monkeypatch, "NVIDIA L40S").peak
    assert peak is not None and (peak.tflops, peak.source) == (362.05, "datasheet")
    l4 = find_peak("NVIDIA L4", "bfloat16")
    assert l4 is not None and l4.tflops == 121.0
    session = Session(peak=peak)
    session.micro_batch([1], tokens=1, seconds=7584 / 90.5125e12)  # 90.5125 TFLOP/s
    session.meter.end_step()
    assert session.meter.window()[names.PERF_MFU_PCT] == pytest.approx(25.0)
    naive = 100 * 90.5125 / 121.0
    assert naive == pytest.approx(74.8, rel=1e-3)  # "L4" is in "NVIDIA L40S"


@pytest.mark.parametrize(("tf32", "tflops"), [(True, 156.0), (False, 19.5)])
def test_float32_that_runs_as_tf32_is_held_against_the_peak_of_tf32(monkeypatch, tf32, tflops):
    """An A100 has 19.5 TFLOP/s in float32 and 156 in TF32 (datasheet): against the former, 50 % would be 400 %."""
    peak = find_peak("NVIDIA A100-SXM4-80GB", find_precision({"bf16": False}).peak_format(tf32=tf32))
    assert peak is not None and peak.tflops == tflops
