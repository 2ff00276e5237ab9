"""When one rank does without ZeRO, and when it keeps it, with the reason."""

import json

import pytest

from training.config import load_config

ASKED = "perf.skip_zero_at_world_1=true"


@pytest.fixture
def load(tmp_path):
    def load_with(*flags, zero=None, ranks=1, **blocks):
        path = tmp_path / "zero.json"
        path.write_text(json.dumps({"bf16": {"enabled": "auto"}, "zero_optimization": zero or {"stage": 2}, **blocks}))
        return load_config(["--deepspeed", str(path), f"training.output_dir={tmp_path / 'run'}", *flags], ranks)

    return load_with


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_one_rank_does_without_it(load, stage):
    loaded = load(ASKED, zero={"stage": stage})
    assert (loaded.deepspeed, loaded.deepspeed_path) == (None, None)
    assert f"one rank, so ZeRO-{stage} is left out" in loaded.notes[-1]


def test_nobody_asked(load):
    loaded = load()
    assert loaded.deepspeed is not None and not any("skip_zero" in note for note in loaded.notes)


OFFLOADED = {"stage": 2, "offload_optimizer": {"device": "cpu"}}


@pytest.mark.parametrize(
    ("changes", "flags", "reason"),
    [
        ({"ranks": 2}, [], "2 ranks share it"),
        ({"zero": {"stage": 3}}, [], "stage 3 holds parameters in another way"),
        ({"zero": OFFLOADED}, [], "it offloads"),
        ({"bf16": {"enabled": False}}, ["--bf16", "false"], "it is equal in bfloat16 only"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}, [], "the JSON has a block optimizer of its own"),
    ],
)
def test_what_keeps_it(load, changes, flags, reason):
    loaded = load(ASKED, *flags, **changes)
    assert loaded.deepspeed is not None
    assert loaded.notes[-1] == f"perf.skip_zero_at_world_1: ZeRO stays: {reason}"


def test_a_checkpoint_of_zero_is_resumed_with_it(load, tmp_path):
    checkpoint = tmp_path / "run" / "checkpoint-3"
    (checkpoint / "global_step3").mkdir(parents=True)
    for resume in ("auto", str(checkpoint)):
        loaded = load(ASKED, "--resume", resume)
        assert loaded.deepspeed is not None and f"{checkpoint} was written with it" in loaded.notes[-1]
    assert load(ASKED).deepspeed is None  # from the beginning
