"""A plan of a MiniGPT of two layers against sums by hand, and what a recipe leaves open."""

from functools import partial

import pytest

from data_prep.errors import UserError
from training.config import load_config
from training.memory.run_plan import ASSUMED_MFU_PCT, find_first_fitting, plan_run
from training.models.fused import find_casts
from training.models.planned import build_planned_model

TINY = [
    "model.kind=minigpt", 'model.config={"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}',
    "data.seq_len=64", "tokenizer.vocab_size=300", "training.max_steps=10", "training.per_device_train_batch_size=2",
]  # fmt: skip
EMBEDDING = 300 * 64
MATMULS_OF_A_LAYER = 4 * 64 * 64 + 3 * 64 * 192  # query, key, value, output; gate, up, down
PARAMETERS = EMBEDDING + 2 * (MATMULS_OF_A_LAYER + 2 * 64) + 64  # tied head; two norms a layer and the last one
PAIRS_OF_A_ROW = 64 * 65 // 2
# Forward and backward: 6 FLOPs a weight and token; 12 a pair of positions, layer and hidden feature.
FLOPS_OF_A_ROW = 6 * (2 * MATMULS_OF_A_LAYER + EMBEDDING) * 64 + 12 * PAIRS_OF_A_ROW * 2 * 64


def plan(*changes, world_size=1, device=None, rate=None):
    loaded = load_config([*TINY, *changes])
    build = partial(build_planned_model, loaded.config)
    return plan_run(loaded, build, world_size=world_size, device=device, rate=rate)


@pytest.fixture(scope="module")
def on_l4():
    return plan("training.gradient_accumulation_steps=3", world_size=2, device="NVIDIA L4")


def test_parameters_and_states(on_l4):
    assert on_l4.parameters == on_l4.trained_parameters == PARAMETERS
    sizes = {part.name: part.bytes for part in on_l4.parts}
    # fp32 weights under autocast; Adam has two fp32 values; DDP a second copy of the gradients
    assert sizes["parameters"] == sizes["DDP buckets"] == 4 * PARAMETERS
    assert sizes["optimizer states"] == 8 * PARAMETERS
    assert on_l4.disk_bytes == {"final": 4 * PARAMETERS, "one checkpoint": 12 * PARAMETERS}


def test_work_of_all_ranks(on_l4):
    rows = 2 * 3 * 2  # micro-batch, accumulation, ranks
    assert (on_l4.tokens_per_step, on_l4.total_tokens) == (rows * 64, 10 * rows * 64)
    assert (on_l4.step_flops, on_l4.total_flops) == (rows * FLOPS_OF_A_ROW, 10 * rows * FLOPS_OF_A_ROW)


def test_time_at_the_assumed_mfu(on_l4):
    """Of 121 TFLOP/s in bfloat16 (datasheet), on each of two ranks."""
    assert ASSUMED_MFU_PCT == 40
    assert on_l4.step_seconds == pytest.approx(12 * FLOPS_OF_A_ROW / 2 / (0.4 * 121e12))
    assert on_l4.seconds == pytest.approx(10 * on_l4.step_seconds)
    assert on_l4.rate == "an assumed MFU of 40 %" and on_l4.capacity_bytes == 22 * 2**30


def test_zero_3_shards_what_a_rank_holds():
    found = plan("--deepspeed", "zero3_bf16", world_size=4)
    assert found.setup == "bfloat16, ZeRO-3"
    sizes = {part.name: part.bytes for part in found.parts}
    assert sizes["optimizer states"] == 8 * PARAMETERS / 4
    # weights of 2 bytes; a checkpoint adds fp32 master weights and Adam's states
    assert found.disk_bytes == {"final": 2 * PARAMETERS, "one checkpoint": (2 * 2 + 4 + 8) * PARAMETERS}


@pytest.mark.parametrize(
    ("changes", "device", "are_fused"),
    [
        ([], None, True),
        (["--deepspeed", "zero2_bf16"], None, True),
        (["model.attn_implementation=sdpa"], None, False),
        (["perf.fused_layers=off"], None, False),
        (["--deepspeed", "zero3_bf16"], None, False),
        ([], "NVIDIA L4", False),
    ],
)
def test_layers_are_fused_in_a_plan_where_they_are_in_a_run(changes, device, are_fused):
    loaded = load_config([*TINY, *changes])
    built = []

    def build(*given):
        built.append(build_planned_model(loaded.config, *given))
        return built[-1]

    plan_run(loaded, build, world_size=2, device=device)
    traced = built[-1]
    assert (find_casts(traced) is not None) == are_fused


def test_a_rate_that_a_run_reached_comes_first():
    found = plan(rate=(0.5, "runs/a"))
    assert found.seconds == pytest.approx(10 * 2 * FLOPS_OF_A_ROW / 0.5e12)
    assert found.rate == "0.5 TFLOP/s per device, as runs/a reached"


def test_what_cannot_be_known_is_none_and_noted():
    found = plan("training.max_steps=-1", "training.eval_strategy=no")
    assert (found.steps, found.total_tokens, found.total_flops, found.seconds, found.step_seconds) == (None,) * 5
    assert (found.capacity_bytes, found.largest_micro_batch_size, found.evaluation_rows) == (None,) * 3
    notes = "; ".join(found.notes)
    assert "training.max_steps is not set" in notes and "no datasheet peak for a CPU" in notes


def test_a_device_without_bfloat16_asks_for_fp16():
    notes = plan(device="Tesla T4").notes
    assert any("Tesla T4 has no bfloat16" in note and "training.fp16=true" in note for note in notes)


def test_an_unknown_device_is_refused():
    with pytest.raises(UserError, match="--device 'abacus': unknown"):
        plan(device="abacus")


def test_auto_takes_the_first_mode_of_checkpointing_that_fits():
    long = ["data.seq_len=256", "model.config.num_hidden_layers=4"]
    roomy = plan(*long, "perf.activation_checkpointing=auto")
    peaks = {mode.name: mode.peak_bytes for mode in roomy.checkpointing_modes}
    assert list(peaks) == ["off", "selective", "every_4", "every_2", "full"] and roomy.checkpointing == "off"
    assert peaks["off"] == roomy.device_peak_bytes and peaks["off"] > peaks["selective"] > peaks["full"]
    assert peaks["off"] > peaks["every_4"] > peaks["every_2"] > peaks["full"]
    named = plan(*long, "perf.activation_checkpointing=every_2")
    assert named.device_peak_bytes == peaks["every_2"] and named.checkpointing_modes == []
    for peak in peaks.values():
        chosen = find_first_fitting(roomy.checkpointing_modes, peak).name
        assert chosen == next(name for name, other in peaks.items() if other <= peak)
    assert find_first_fitting(roomy.checkpointing_modes, 1).name == "full"
    shares = {mode.name: mode.recomputed_pct for mode in roomy.checkpointing_modes}
    assert shares["off"] == shares["selective"] == 0 and 0 < shares["every_4"] == shares["full"] / 4
    # all of a layer but its last product, of the forward pass with its head
    layers = 4 * (2 * MATMULS_OF_A_LAYER + 4 * 64 * 257 / 2)
    assert shares["full"] == pytest.approx(100 * (layers - 4 * 2 * 64 * 192) / (layers + 2 * EMBEDDING))
