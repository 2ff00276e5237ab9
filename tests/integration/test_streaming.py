"""A run straight from raw sources under ZeRO-2 with two ranks: evaluated, interrupted, resumed bit for bit."""

import json

import pytest

from tests.integration.conftest import ROOT
from tests.integration.test_resume import SAVE_EACH_STEP, check_same, copy_killed_at
from training.metrics import names


@pytest.mark.launch
def test_two_ranks_resume_a_stream(launch, tmp_path):
    texts = [" ".join(f"x{n} = {n * m}" for n in range(3 + m % 40)) for m in range(400)]
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "texts.jsonl").write_text("\n".join([*lines, '{"text": 1}']) + "\n")
    flags = [*SAVE_EACH_STEP, "--max_steps", "4", "--deepspeed", str(ROOT / "ds_configs" / "zero2_bf16.json")]
    flags += ["data.streaming=true", f"data.sources=[{{path: {tmp_path / 'texts.jsonl'}}}]", "data.validation_rows=8"]
    flags += ["data.on_bad_record=skip", "--eval_strategy", "steps", "--eval_steps", "2"]
    straight = launch("torchrun", "straight", *flags)
    assert "no store" in straight.output and "each unit is read by 2 of them" in straight.output
    assert len(straight.values(names.EVAL_LOSS)) == 2
    assert min(straight.values(names.PERF_USEFUL_TOKENS_PCT)) > 90
    summary = straight.json("summary.json")
    assert (summary["streamed"], summary["bad_records"], summary["store"]) == (True, 1, None)
    [bad] = [json.loads(line) for line in (straight.path / "bad_records.jsonl").read_text().splitlines()]
    assert (bad["number"], bad["reason"]) == (401, "'text' is a int, not a str")
    report = (straight.path / "report.html").read_text()
    assert "1 record(s) were left out" in report and "streamed" in report

    copy_killed_at(straight, 2, "resumed")
    resumed = launch("torchrun", "resumed", *flags, "checkpoint.verify_final=false", "--resume", "auto")
    check_same(straight, resumed, 2, 4)
    assert resumed.json("summary.json")["bad_records"] == 1
