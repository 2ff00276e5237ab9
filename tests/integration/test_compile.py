"""`perf.compile: blocks` on two ranks with ZeRO-2: no compilation after the second step, and a bit-exact resume."""

import json

import pytest

from tests.integration.conftest import ROOT
from training.metrics import names


@pytest.mark.launch
@pytest.mark.timeout(600)
def test_zero_2_compiles_once_and_resumes_bit_for_bit(launch_all, tmp_path):
    # Our attention would end each graph.
    flags = ["perf.compile=blocks", "--attn_implementation", "sdpa", "--save_strategy", "steps", "--save_steps", "3",
             "--deepspeed", str(ROOT / "ds_configs" / "zero2_bf16.json")]  # fmt: skip
    evaluated = ["--eval_strategy", "steps", "--eval_steps", "3"]
    resumed = ["--resume", str(tmp_path / "whole" / "checkpoint-3")]
    runs = {"whole": [*flags, *evaluated], "resumed": [*flags, *evaluated, *resumed]}
    done = launch_all("torchrun", tmp_path, runs)
    whole = done["whole"]
    assert "compile: 1 graph, " in whole.output and "compiled again" not in whole.output
    events = [json.loads(line)["kind"] for line in (whole.path / "events.jsonl").read_text().splitlines()]
    assert "recompile" not in events
    # A resumed run keeps the records up to its checkpoint.
    assert done["resumed"].values(names.TRAIN_LOSS) == whole.values(names.TRAIN_LOSS)
    weights = [one.checkpoint_files(6)["model.safetensors"] for one in done.values()]
    assert weights[0] == weights[1]
