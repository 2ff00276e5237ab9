"""The traced peak against what PyTorch's allocator really handed out, step by step, on a CPU."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.metrics.decoders import CONFIGS, build_decoder
from training.activations.modes import FULL, MODES, OFF
from training.attention.stand_ins import EAGER, FLASH, MASKED, StandIn
from training.memory.trace import Reduction, StepShape, StepTracer, _LiveBytes, _Reducer

ROWS, SEQ_LEN = 4, 128  # large enough for kernels' workspaces, which no trace sees, not to matter

WORKSPACE_BYTES = 160_000  # oneDNN's for a bf16 product of these sizes


def measure_peak_bytes(step: Any) -> int:
    """Peak of the allocator's balance over the step, from its own events: nothing of ours is in it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    balance = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        balance += event.nbytes()
        peak = max(peak, balance)
    return peak


def real_step(model: Any, autocast: torch.dtype | None) -> None:
    ids = torch.ones(ROWS, SEQ_LEN, dtype=torch.long)
    with torch.autocast("cpu", autocast) if autocast else nullcontext():
        outputs = model(input_ids=ids, labels=ids)
    if autocast:
        outputs.logits = outputs.logits.float()
    loss = outputs.loss
    del outputs
    loss.backward()


def shape(attention: StandIn = FLASH, autocast: torch.dtype | None = None, **changes: Any) -> StepShape:
    fields: dict[str, Any] = {"checkpointing": OFF, "accumulates": False, "keeps_gradients": True}
    fields |= {"micro_batch_size": ROWS, **changes}
    return StepShape(seq_len=SEQ_LEN, attention=attention, autocast=autocast, **fields)


@pytest.mark.parametrize("checkpointing", [OFF, FULL], ids=["stored", "checkpointed"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("architecture", ["minigpt", "minigpt_gelu", "qwen3", "gpt2_dropout", "qwen3_moe"])
def test_traced_peak_is_the_allocated_one(architecture, method, autocast, checkpointing):
    model = build_decoder(architecture, method)
    checkpointing.apply(model)
    measured = measure_peak_bytes(lambda: real_step(model, autocast))
    attention = EAGER if architecture == "minigpt_gelu" else FLASH
    tracer = StepTracer(build_decoder(architecture, method, device="meta"))
    traced = tracer.trace(shape(attention, autocast, checkpointing=checkpointing))
    missing = measured - traced.peak
    assert -0.03 * measured < missing < max(0.03 * measured, WORKSPACE_BYTES)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize(
    ("architecture", "method"),
    [("qwen3", "full"), ("minigpt_gelu", "full"), ("minigpt", "lora"), ("qwen3_moe", "full")],
)
def test_traced_peak_of_each_mode_of_checkpointing_is_the_allocated_one(architecture, method, autocast):
    attention = EAGER if architecture == "minigpt_gelu" else FLASH
    tracer = StepTracer(build_decoder(architecture, method, device="meta"))
    measured, traced = {}, {}
    for mode in MODES:
        model = build_decoder(architecture, method)
        mode.apply(model)
        measured[mode.name] = measure_peak_bytes(lambda model=model: real_step(model, autocast))
        traced[mode.name] = tracer.trace(shape(attention, autocast, checkpointing=mode)).peak
        missing = measured[mode.name] - traced[mode.name]
        assert -0.03 * measured[mode.name] < missing < max(0.03 * measured[mode.name], WORKSPACE_BYTES), mode.name
    assert sorted(traced, key=traced.__getitem__) == sorted(measured, key=measured.__getitem__)
    assert traced["full"] < traced["every_2"] < traced["every_4"] < traced["off"]
    assert (
        traced["selective"] < traced["off"] or method == "lora"
    )  # frozen weights need few of the inputs that are kept


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("architecture", ["gpt2", "qwen2"])
def test_attention_dropout_leaves_a_cpu_without_a_fused_kernel(architecture, autocast, monkeypatch):
    dropped = copy.deepcopy(CONFIGS[architecture])
    dropped.attention_dropout = dropped.attn_pdrop = 0.1  # of Qwen2; of GPT-2
    monkeypatch.setitem(CONFIGS, architecture, dropped)
    model = build_decoder(architecture)
    measured = measure_peak_bytes(lambda: real_step(model, autocast))
    traced = StepTracer(build_decoder(architecture, device="meta")).trace(shape(FLASH, autocast)).peak
    assert -0.03 * measured < measured - traced < max(0.03 * measured, WORKSPACE_BYTES)
    fused = StepTracer(build_decoder(architecture, device="meta"), on_gpu=True).trace(shape(FLASH, autocast)).peak
    assert fused < 0.8 * traced


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("architecture", ["minigpt", "minigpt_gelu", "qwen3", "gpt2_dropout"])
def test_traced_evaluation_is_the_allocated_one(architecture, autocast):
    model = build_decoder(architecture).eval()
    ids = torch.ones(2 * ROWS, SEQ_LEN, dtype=torch.long)

    def evaluate():
        with torch.no_grad(), torch.autocast("cpu", autocast) if autocast else nullcontext():
            outputs = model(input_ids=ids, labels=ids, use_cache=False)
        if autocast:
            outputs.logits = outputs.logits.float()

    attention = EAGER if architecture == "minigpt_gelu" else FLASH
    tracer = StepTracer(build_decoder(architecture, device="meta"))
    training = tracer.trace(shape(attention, autocast)).peak
    measured = measure_peak_bytes(evaluate)
    missing = measured - tracer.trace_evaluation(shape(attention, autocast, micro_batch_size=2 * ROWS))
    assert -0.03 * measured < missing < max(0.03 * measured, WORKSPACE_BYTES)
    assert tracer.trace(shape(attention, autocast, micro_batch_size=ROWS)).peak == training  # dropout is on again


@pytest.fixture(scope="module")
def tracer():
    return StepTracer(build_decoder("qwen2", device="meta"))


def test_tracing_twice_gives_the_same(tracer):
    first = tracer.trace(shape())
    tracer.trace(shape(checkpointing=FULL, accumulates=True))
    assert tracer.trace(shape()) == first


@pytest.mark.parametrize(
    ("architecture", "kind", "changes"),
    [("minigpt", MASKED, {"checkpointing": FULL}), ("qwen2", FLASH, {}), ("gpt2", EAGER, {"accumulates": True})],
)
def test_a_third_size_lies_on_the_lines_of_two(architecture, kind, changes, monkeypatch):
    """Against a trace of that size by itself."""
    tracer = StepTracer(build_decoder(architecture, device="meta"))
    for size in (2, 3):
        tracer.trace(shape(kind, torch.bfloat16, micro_batch_size=size, **changes))
    with monkeypatch.context() as patch:
        patch.setattr(tracer, "_run", None)  # nothing is traced for them
        drawn = {size: tracer.trace(shape(kind, torch.bfloat16, micro_batch_size=size, **changes)) for size in (1, 11)}
    for size, trace in drawn.items():
        traced = StepTracer(build_decoder(architecture, device="meta")).trace(
            shape(kind, torch.bfloat16, micro_batch_size=size, **changes)
        )
        assert trace.peak == pytest.approx(traced.peak, rel=0.02)  # a single row needs a copy less here and there
        assert trace == traced or size == 1


def test_order_of_attention_kinds(tracer):
    """Scores of every head > one bias per row > nothing of seq_len^2."""
    flash, masked, eager = (tracer.trace(shape(kind)).after_forward for kind in (FLASH, MASKED, EAGER))
    assert flash < masked < eager
    repeated = 2 * ROWS * SEQ_LEN * (32 - 16) * 4  # keys and values of 2 heads become 4
    bias = ROWS * SEQ_LEN * SEQ_LEN * 4
    assert masked - flash == 4 * (repeated + bias)


def test_checkpointing_keeps_a_layers_input_only(tracer):
    assert tracer.trace(shape(checkpointing=FULL)).layer == ROWS * SEQ_LEN * 32 * 4


def test_gradients_of_earlier_micro_batches_are_there_from_the_start(tracer):
    gradients = sum(4 * p.numel() for p in build_decoder("qwen2").parameters())
    fresh, accumulating = tracer.trace(shape()), tracer.trace(shape(accumulates=True))
    assert accumulating.after_forward - fresh.after_forward == gradients


def test_reduced_gradients_are_not_kept(tracer):
    reduction = Reduction(bucket=1000, num_buckets=0, partition=0)
    assert tracer.trace(shape(keeps_gradients=False, reduction=reduction)).peak <= tracer.trace(shape()).peak


def test_reducer_by_hand():
    """Buckets of 100 bytes: two of 40 fit, the third flushes 80, one of 400 waits alone and is flattened once more."""
    live = _LiveBytes()
    parameters = [torch.nn.Parameter(torch.zeros(size // 4)) for size in (40, 40, 40, 400, 40)]
    seen = []
    with live:
        reducer = _Reducer(Reduction(bucket=100, num_buckets=2, partition=50))
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
            since = len(live.timeline)
            before = live.now
            reducer(parameter)
            seen.append((max([before, *live.timeline[since:]]), live.now))
        reducer.flush()
    buffers = 2 * 100 + 50
    assert seen == [
        (buffers + 40, buffers),
        (buffers + 40, buffers),
        (buffers + 40 + 80, buffers),
        (buffers + 400 + 40, buffers + 400),
        (buffers + 400 + 40 + 400, buffers),
    ]
    assert live.now == buffers
