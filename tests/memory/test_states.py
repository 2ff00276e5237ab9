"""Bytes of parameters, gradients and optimizer states, by hand."""

from dataclasses import replace

import pytest
from torch import nn

from tests.metrics.decoders import build_decoder
from training.memory.states import (
    Parameters,
    ZeroSetup,
    bytes_per_4bit_weight,
    count_parameters,
    list_plain_parts,
    list_step_temporaries,
    list_zero_parts,
    plain_state_bytes,
    read_zero_setup,
)
from training.memory.trace import Reduction
from training.optim.choose import choose_optimizer

COUNTS = Parameters(
    total=1000, trained=800, in_4bit=0, bytes=4000, trained_bytes=3200,
    largest_linear=0, largest_layer=100, largest_outside_layers=300,
)  # fmt: skip


def chosen(name):
    return choose_optimizer({"optim": name}, None)


def by_name(parts, place="device"):
    return {part.name: part.bytes for part in parts if part.place == place}


def test_plain_adam():
    assert by_name(list_plain_parts(COUNTS, chosen("adamw_torch_fused"), 1)) == {
        "parameters": 4000,
        "optimizer states": 6400,
    }
    assert by_name(list_plain_parts(COUNTS, chosen("sgd"), 2)) == {
        "parameters": 4000,
        "optimizer states": 0,
        "DDP buckets": 3200,
    }


class TiedModel(nn.Module):
    """An embedding of 8,000 elements that is the head's weight as well; a layer of 4,096 and a bias of 64."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(1000, 8), nn.Linear(8, 1000, bias=False)
        self.head.weight = self.embedding.weight
        self.layer = nn.Linear(64, 64)


def test_8bit_optimizers_keep_embeddings_and_small_tensors_in_fp32():
    model = TiedModel()
    counts = count_parameters(model)
    assert counts.outside_8bit == 8000 + 64
    # a byte and a 256th of an fp32 scale for each of 4,096 elements, twice for Adam
    assert plain_state_bytes(counts, chosen("paged_adamw_8bit")) == 2 * (4096 + 4 * 16) + 8 * (8000 + 64)
    assert plain_state_bytes(counts, chosen("lion_8bit")) == 4096 + 4 * 16 + 4 * (8000 + 64)
    assert plain_state_bytes(counts, chosen("adamw_torch")) == 8 * (8000 + 4096 + 64)
    # of torchao and not in the table: taken for Adam as it is
    assert plain_state_bytes(counts, chosen("adamw_torch_8bit")) == 8 * (8000 + 4096 + 64)
    assert by_name(list_plain_parts(counts, chosen("adamw_8bit"), 1))["optimizer states"] == 2 * 4160 + 8 * 8064
    model.embedding.requires_grad_(False)
    assert count_parameters(model).outside_8bit == 64


def test_8bit_optimizers_see_no_embedding_in_flat_partitions():
    counts = replace(COUNTS, outside_8bit=700)
    states = by_name(list_zero_parts(counts, ZeroSetup(2, 4), chosen("adamw_8bit")))["optimizer states"]
    assert states == round(2 * 200 * (1 + 4 / 256))


BITSANDBYTES = {
    "AdamW": ("adamw_bnb_8bit", "paged_adamw_32bit"),
    "Lion": ("lion_8bit", "lion_32bit"),
    "RMSprop": ("rmsprop_bnb_8bit", "rmsprop_bnb"),
    "AdEMAMix": ("ademamix_8bit", "ademamix"),
}


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("name", BITSANDBYTES)
def test_states_are_those_that_bitsandbytes_makes(name, bits, monkeypatch):
    bnb = pytest.importorskip("bitsandbytes")
    model = TiedModel()
    optimizer = getattr(bnb.optim, name)(model.parameters(), optim_bits=bits)
    (group,) = optimizer.param_groups
    for parameter in model.parameters():
        with monkeypatch.context() as patch:
            if parameter is model.embedding.weight:  # as transformers asks for
                patch.setitem(optimizer.defaults, "optim_bits", 32)
                patch.setattr(optimizer.args, "optim_bits", 32)
            optimizer.init_state(group, parameter, 0, 0)
    held = sum(
        value.nbytes
        for state in optimizer.state.values()
        for key, value in state.items()
        if key.startswith(("state", "absmax"))
    )
    assert plain_state_bytes(count_parameters(model), chosen(BITSANDBYTES[name][bits == 32])) == held


@pytest.mark.parametrize(
    ("stage", "parameters", "master", "states", "gradients", "at_step"),
    [
        (0, 2000, 3200, 6400, None, None),
        (1, 2000, 800, 1600, None, 2 * 400 + 800),
        (2, 2000, 800, 1600, None, 2 * 400 + 800),
        (3, 500, 800, 1600, 400, None),
    ],
)
def test_zero_stages_over_four_ranks(stage, parameters, master, states, gradients, at_step):
    parts = by_name(list_zero_parts(COUNTS, ZeroSetup(stage, 4, reduce_bucket=100), chosen("adamw_torch")))
    assert parts["parameters"] == parameters
    assert parts["fp32 master weights"] == master
    assert parts["optimizer states"] == states
    assert parts.get("gradients") == gradients
    assert parts.get("gradients at the step") == at_step
    assert parts.get("reduce bucket") == (200 if stage == 3 else None)
    assert ("gathered parameters" in parts) == (stage == 3)


def test_zero3_turns_gradients_to_fp32_one_sub_group_at_a_time():
    parts = by_name(list_zero_parts(COUNTS, ZeroSetup(3, 4, sub_group=30), chosen("adamw_torch")))
    assert parts["fp32 gradients"] == 4 * 30


@pytest.mark.parametrize(
    ("reuse", "live", "gathered"),
    [(10**9, 10**9, 1000), (800, 10**9, 400), (10, 10**9, 350), (10**9, 120, 120)],
)
def test_zero3_gathers_what_is_soon_used_again(reuse, live, gathered):
    """All of a small model; half the distance; the head of 300 and the prefetch of 50; no more than may live."""
    setup = ZeroSetup(3, 4, prefetch_bucket=50, max_reuse_distance=reuse, max_live_parameters=live)
    assert by_name(list_zero_parts(COUNTS, setup, chosen("adamw_torch")))["gathered parameters"] == 2 * gathered


def test_a_single_rank_gathers_nothing_that_it_has():
    assert "gathered parameters" not in by_name(list_zero_parts(COUNTS, ZeroSetup(3, 1), chosen("adamw_torch")))
    offloaded = ZeroSetup(3, 1, offload_param=True, max_reuse_distance=0, prefetch_bucket=50)
    assert by_name(list_zero_parts(COUNTS, offloaded, chosen("adamw_torch")))["gathered parameters"] == 2 * 350


def test_offloading_moves_states_to_the_host():
    setup = ZeroSetup(
        3, 4, offload_optimizer=True, offload_param=True, reduce_bucket=100, prefetch_bucket=50, max_reuse_distance=0
    )
    parts = list_zero_parts(COUNTS, setup, chosen("adamw_torch"))
    assert by_name(parts, "host") == {
        "parameters": 500,
        "fp32 master weights": 800,
        "optimizer states": 1600,
        "fp32 gradients": 800,
        "gradients": 400,
    }
    assert by_name(parts) == {"reduce bucket": 200, "gathered parameters": 2 * (300 + 50)}


def test_buckets_are_made_in_backward_and_double_when_overlapped():
    assert ZeroSetup(0, 4).reduction is None
    sizes = [ZeroSetup(stage, 4, reduce_bucket=70, overlap_comm=stage > 1).reduction for stage in (1, 2, 3)]
    assert sizes == [Reduction(140, 1, 0), Reduction(140, 2, 0), Reduction(140, 0, 0)]


def test_temporaries_of_an_optimizer_that_is_not_fused():
    def size(optimizer, on_gpu):
        return [part.bytes for part in list_step_temporaries(chosen(optimizer), 30, 100, on_gpu=on_gpu)]

    assert (size("adamw_torch", False), size("adamw_torch", True)) == ([240], [400])
    assert size("adamw_torch_fused", True) == size("sgd", False) == []


def test_reading_a_deepspeed_json():
    zero = {"stage": 3, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto"}
    offload = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "none"}}
    setup = read_zero_setup({"zero_optimization": zero | offload}, world_size=2, hidden_size=100)
    assert setup == ZeroSetup(
        3, 2, offload_optimizer=True, reduce_bucket=10_000, prefetch_bucket=9_000, overlap_comm=True
    )


def test_tied_and_frozen_parameters_are_counted_once_and_apart():
    untied, tied = count_parameters(build_decoder("qwen2")), count_parameters(build_decoder("qwen2_tied"))
    assert untied.total - tied.total == 96 * 32
    assert tied.bytes == 4 * tied.total == 4 * tied.trained
    assert count_parameters(build_decoder("qwen2", "lora")).trained < tied.total / 3


def test_4bit_weights():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = nn.Sequential(bitsandbytes.nn.Linear4bit(64, 128, bias=False, device="meta"), nn.Linear(8, 8, bias=False))
    model[0].weight.requires_grad_(False)
    counts = count_parameters(model)
    assert counts.in_4bit == 64 * 128
    assert counts.bytes == pytest.approx(64 * 128 * 0.516 + 4 * 64, rel=0.001)
    assert bytes_per_4bit_weight(double_quant=False) == 0.5625
    plain = count_parameters(model, double_quant=False)
    assert plain.bytes_in_4bit == 64 * 128 * 0.5625
    # ZeRO-2 holds the 64 other weights in 2 bytes and the 4-bit ones as they are
    assert by_name(list_zero_parts(plain, ZeroSetup(2, 4), chosen("sgd")))["parameters"] == 64 * 128 * 0.5625 + 2 * 64
