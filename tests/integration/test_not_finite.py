"""A NaN in a loss or in a gradient never reaches the weights, under any launcher: the run stops before the step, on all
ranks together, and says where it was.

One launch a launcher. Saved at each step, so the checkpoint before the NaN is the last one with finite weights.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.integration import injected_nan
from tests.integration.conftest import ROOT
from tests.integration.injected_nan import STEP
from tests.integration.several_runs import REFUSED
from training.metrics import names

FLAGS = [
    REFUSED, "--save_strategy", "steps", "--save_steps", "1", "data.verify_packing=false", "perf.enabled=false",
    "monitor.train_every=2",
]  # fmt: skip
UNCLIPPED = ["training.max_grad_norm=0"]
UNCHECKED = "unchecked.json"  # ZeRO-2 with bf16.check_grad_overflow: false
RUNS = {
    "python": {"loss-plain": [], "gradient-unclipped": UNCLIPPED},
    "deepspeed": {
        "loss-ddp": UNCLIPPED,
        "gradient-ddp": [],
        "loss-zero1": ["--deepspeed", "zero1_bf16"],
        "gradient-zero2": ["--deepspeed", "zero2_bf16"],
        "gradient-unchecked": ["--deepspeed", UNCHECKED],
        "gradient-zero3": ["--deepspeed", "zero3_bf16"],
    },
}

pytestmark = [pytest.mark.launch, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", params=RUNS)
def runs(request, launch_all, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    unchecked = json.loads((ROOT / "ds_configs" / "zero2_bf16.json").read_text())
    unchecked["bf16"]["check_grad_overflow"] = False
    (folder / UNCHECKED).write_text(json.dumps(unchecked))
    given = {name: [*FLAGS, *flags] for name, flags in RUNS[request.param].items()}
    return launch_all(request.param, folder, given, script=Path(injected_nan.__file__))


def read_events(run):
    def refuse(token):
        raise AssertionError(f"{token} is no JSON")

    lines = (run.path / "events.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_the_run_stops_before_the_step_on_all_ranks(runs):
    for name, run in runs.items():
        left = [json.loads(path.read_text()) for path in sorted(run.path.glob("after-*.json"))]
        assert left == [{"finite": True, "step": STEP - 1}] * (1 if "python" in str(run.path.parent) else 2), name
        assert [record["step"] for record in run.metrics()] == [1, 2]
        assert all(math.isfinite(value) for value in run.values(names.TRAIN_LOSS))


def test_the_error_names_step_micro_batch_and_rows(runs):
    for name, run in runs.items():
        (event,) = (event for event in read_events(run) if event["kind"] == "not_finite")
        assert event["step"] == STEP and event["message"].startswith(f"step {STEP}: ")
        last = f"rank {len(event['losses']) - 1}"
        assert len(event["losses"][last]) == 2  # micro-batches
        if name.startswith("loss"):
            assert event["losses"][last][1] == "nan" and event["losses"][last][0] != "nan"
            assert "the loss of micro-batch 2 of 2" in event["message"]
        else:
            assert "nan" not in event["losses"][last] and "the gradient" in event["message"]
        assert "document" in event["rows"][last][1] and event["rows"][last][1] in event["message"]
        assert f"error: {event['message']}" in run.output


def test_the_checkpoint_before_is_kept_and_named(runs):
    for run in runs.values():
        summary = run.json("summary.json")
        assert summary["status"] == "failed" and f"step {STEP}: " in summary["error"]
        assert summary["last_finite_checkpoint"] == f"checkpoint-{STEP - 1}"
        assert sorted(path.name for path in run.path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
        assert not (run.path / "final").exists()
        weights = [load_file(path) for path in (run.path / f"checkpoint-{STEP - 1}").glob("*.safetensors")]
        assert all(bool(torch.isfinite(tensor).all()) for tensors in weights for tensor in tensors.values())
