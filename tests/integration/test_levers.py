"""The levers of speed, alone, in pairs and all together, through `train.py`: the losses are those of the plain path.

Gradients and weights are compared one by one where each lever is tested (tests/models/test_fused.py, tests/attention,
tests/loss). Here it is whole runs of 20 steps: packed rows of several documents, two micro-batches a step.
"""

import pytest

from tests.integration.conftest import ROOT
from training.metrics import names

STEPS = 20
COMMON = ["--max_steps", str(STEPS), "model.config.attention_dropout=0"]
PLAIN = {"--attn_implementation": "sdpa", "--perf.loss_kernel": "plain", "--perf.fused_layers": "off"}
LEVERS = {
    "attention": {"--attn_implementation": "redline_cpu"},
    "loss": {"--perf.loss_kernel": "chunked"},
    "layers": {"--attn_implementation": "redline_cpu", "--perf.fused_layers": "on"},
    "checkpointing": {"--gradient_checkpointing": "true"},
    "compile": {"--perf.compile": "blocks"},
    "garbage": {"--perf.collect_garbage_every": "3"},
}
RUNS = {
    "attention": ["attention"],
    "loss": ["loss"],
    "layers": ["layers"],
    "attention and loss": ["attention", "loss"],
    "layers and loss": ["layers", "loss"],
    "layers and checkpointing": ["layers", "checkpointing"],
    "loss and compile": ["loss", "compile"],
    "all": ["layers", "loss", "garbage"],
    "all, checkpointed": ["layers", "loss", "garbage", "checkpointing"],
}
# Of a loss near 6. In float32 only the order of sums differs; in bfloat16 rounding does, too, as it does between two
# kernels of PyTorch.
FLOAT32, BFLOAT16 = 5e-5, 6e-3


def write_flags(levers: list[str], *more: str) -> list[str]:
    chosen = dict(PLAIN)
    for lever in levers:
        chosen.update(LEVERS[lever])
    return [*COMMON, *(word for pair in chosen.items() for word in pair), *more]


def find_gap(losses: list[float], plain: list[float]) -> float:
    assert len(losses) == len(plain) == STEPS and losses[-1] < losses[0] - 0.2
    return max(abs(a - b) for a, b in zip(losses, plain, strict=True))


@pytest.mark.launch
@pytest.mark.timeout(600)
def test_alone_and_in_pairs_losses_are_those_of_the_plain_path(launch_all, tmp_path):
    float32, padded = ("--bf16", "false"), ("--packing", "none")
    runs = {"plain": write_flags([], *float32)}
    runs |= {name: write_flags(levers, *float32) for name, levers in RUNS.items()}
    runs |= {
        "plain, padded": write_flags([], *float32, *padded),
        "all, padded": write_flags(RUNS["all"], *float32, *padded),
    }
    runs |= {"plain, bf16": write_flags([], "--bf16", "true"), "all, bf16": write_flags(RUNS["all"], "--bf16", "true")}
    done = launch_all("python", tmp_path, runs)
    losses = {name: run.values(names.TRAIN_LOSS) for name, run in done.items()}
    gaps = {name: find_gap(losses[name], losses["plain"]) for name in RUNS}
    gaps["all, padded"] = find_gap(losses["all, padded"], losses["plain, padded"])
    assert all(gap < FLOAT32 for gap in gaps.values()), gaps
    assert any(losses[name] != losses["plain"] for name in ("attention", "loss", "layers"))  # else nothing was switched
    assert find_gap(losses["all, bf16"], losses["plain, bf16"]) < BFLOAT16


@pytest.mark.launch
@pytest.mark.timeout(600)
def test_under_zero_losses_are_those_of_the_plain_path(launch_all, tmp_path):
    runs = {}
    for name in ("zero1_bf16", "zero2_bf16", "zero3_bf16"):
        chosen = ["loss"] if name == "zero3_bf16" else ["layers", "loss"]  # under ZeRO-3 layers keep their classes
        chosen = ["attention", *chosen]
        json_file = ("--deepspeed", str(ROOT / "ds_configs" / f"{name}.json"))
        runs |= {f"plain {name}": write_flags([], *json_file), name: write_flags(chosen, *json_file)}
    done = launch_all("torchrun", tmp_path, runs)
    losses = {name: run.values(names.TRAIN_LOSS) for name, run in done.items()}
    gaps = {name: find_gap(losses[name], losses[f"plain {name}"]) for name in runs if not name.startswith("plain")}
    assert all(0 < gap < BFLOAT16 for gap in gaps.values()), gaps


@pytest.mark.launch
def test_one_rank_trains_without_zero_what_it_trains_with_it(launch_all, tmp_path):
    flags = write_flags(RUNS["all"], "--deepspeed", str(ROOT / "ds_configs" / "zero2_bf16.json"), "perf.num_threads=1")
    skipping = [*flags, "perf.skip_zero_at_world_1=true", "--save_strategy", "steps", "--save_steps", "10"]
    done = launch_all("python", tmp_path, {"skipping": skipping, "zero": flags})  # ZeRO stays in a process
    assert "one rank, so ZeRO-2 is left out" in done["skipping"].output
    losses = [run.values(names.TRAIN_LOSS) for run in done.values()]
    assert 0 < find_gap(losses[0], losses[1]) < BFLOAT16
    assert not list((tmp_path / "skipping" / "checkpoint-10").glob("global_step*"))
