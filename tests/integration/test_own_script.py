"""`ProfiledTrainer` in a script without a recipe, on two ranks: losses of the stock Trainer, and one set of records."""

import json

import pytest

from tests.integration import own_script
from tests.integration.conftest import LAUNCHERS, ROOT, own_port, run
from training.metrics import names


@pytest.mark.launch
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("launcher", "engine"), [("torchrun", []), ("deepspeed", [str(ROOT / "ds_configs" / "zero2_bf16.json")])]
)
def test_two_ranks_without_a_recipe(launcher, engine, tmp_path):
    command = [*LAUNCHERS[launcher], *own_port(launcher), own_script.__file__]
    run([*command, str(tmp_path), *engine], tmp_path / "mine")
    stock, mine = (json.loads((tmp_path / name / "log.json").read_text()) for name in ("stock", "mine"))
    for key in ("loss", "grad_norm", "learning_rate"):
        assert [entry[key] for entry in mine if key in entry] == [entry[key] for entry in stock if key in entry]
    records = [json.loads(line) for line in (tmp_path / "mine" / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if names.PERF_STEP_MS in record]
    assert [record["step"] for record in steps] == list(range(1, own_script.STEPS + 1))  # rank 0 writes, alone
    a_step = 2 * 2 * 2 * own_script.LENGTH  # ranks x micro-steps x rows
    assert [record["tokens"] for record in steps] == [a_step * step for step in range(1, own_script.STEPS + 1)]
    for record in steps:
        phases = [record[names.phase_key(phase)] for phase in names.PHASES if names.phase_key(phase) in record]
        assert sum(phases) == pytest.approx(record[names.PERF_STEP_MS], rel=1e-9)
        assert record[names.phase_key(names.COMM_EXPOSED)] > 0 and record[names.PERF_MFU_PCT] > 0
        assert record[names.phase_key(names.OPTIMIZER)] > 0
    saved = json.loads((tmp_path / "mine" / "checkpoint-2" / "redline.json").read_text())
    assert saved["tokens"] == 2 * a_step
    summary = json.loads((tmp_path / "mine" / "summary.json").read_text())
    assert (summary["status"], summary["tokens"]) == ("finished", own_script.STEPS * a_step)
    environment = json.loads((tmp_path / "mine" / "env.json").read_text())
    assert (environment["launcher"], environment["world_size"]) == (launcher, 2)
    assert not (tmp_path / "stock" / "metrics.jsonl").exists()
