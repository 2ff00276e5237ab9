"""Which optimizer a recipe or a DeepSpeed JSON means, and how much it holds, by hand."""

import subprocess
import sys
from pathlib import Path

import pytest

from training.optim.choose import choose_optimizer, describe_offer, is_of_deepspeed, list_unneeded_imports


@pytest.mark.parametrize(
    ("optim", "arguments", "label", "bytes_of_100"),
    [
        ("adamw_torch_fused", None, "adamw_torch_fused", 800),
        ("sgd", None, "sgd", 0),
        ("sgd", "momentum=0.9", "sgd with momentum", 400),
        ("sgd", "momentum=0", "sgd", 0),
        ("rmsprop", "momentum=0.9, centered=True", "rmsprop with momentum and centered", 1200),
        ("rmsprop", "centered=false", "rmsprop", 400),
        ("galore_adamw", "rank=8", "galore_adamw", 800),  # not known: taken for Adam
    ],
)
def test_of_a_recipe(optim, arguments, label, bytes_of_100):
    chosen = choose_optimizer({"optim": optim, "optim_args": arguments}, None)
    assert (chosen.label, chosen.count_state_bytes(100, 0)) == (label, bytes_of_100)


@pytest.mark.parametrize(
    ("block", "label", "bytes_of_one"),
    [
        ({"type": "AdamW"}, "adamw", 8),
        ({"type": "Lion", "params": {"lr": "auto"}}, "lion", 4),
        ({"type": "SGD", "params": {"momentum": 0.9}}, "sgd with momentum", 4),
        ({"type": "Adafactor"}, "adafactor", 4),
        ({"type": "Muon"}, "muon", 8),
        ({"type": "ASGD"}, "ASGD", 8),
    ],
)
def test_of_a_deepspeed_json(block, label, bytes_of_one):
    chosen = choose_optimizer({"optim": "sgd"}, {"optimizer": block})
    assert (chosen.label, chosen.flat_bytes) == (label, bytes_of_one)


def test_8bit_states_and_what_stays_in_fp32():
    chosen = choose_optimizer({"optim": "adamw_8bit"}, None)
    # two states: a byte and 4/256 of one for 256 elements, 4 bytes for 10
    assert chosen.count_state_bytes(266, 10) == 2 * (256 + 4 + 40)
    assert chosen.flat_bytes == 2 * (1 + 4 / 256)


def test_whose_types_are():
    assert [is_of_deepspeed(name) for name in ("AdamW", "muon", "SGD", "ASGD")] == [True, True, False, False]


def test_bitsandbytes_is_left_out_unless_it_is_needed():
    assert list_unneeded_imports("adamw_torch") == list_unneeded_imports(None) == ["bitsandbytes"]
    for name in ("adamw_8bit", "lion_32bit", "paged_ademamix_8bit", "rmsprop_bnb", "galore_adamw_8bit"):
        assert list_unneeded_imports(name) == []


def test_the_offer_names_what_needs_more_than_the_requirements():
    needed, refused = (part.split(": ")[1].split(", ") for part in describe_offer().rstrip(".").split(". "))
    assert "galore_adamw" in needed and not {"adamw_8bit", "sgd", "lomo"} & set(needed)
    assert "lomo" in refused and "stable_adamw" not in refused


def test_it_is_known_before_torch():
    code = "import sys, training.optim.choose; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
