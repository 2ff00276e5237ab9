"""`advise` from its command line to its page, with a stand-in for training whose gains are known; one real trial."""

import json
import random
import sys
from pathlib import Path

import pytest
import yaml

from data_prep.errors import UserError
from training.benchmark.advise.command import main
from training.benchmark.advise.running import SHORT, TRIAL
from training.benchmark.launching import run_logged
from training.config import load_config
from training.metrics import names

LEVERS = "micro-batch,packing,compile,checkpointing,workers,optimizer,zero-stage,pinned-memory"
SIZES = ["--batch_size", "4", "--gradient_accumulation_steps", "2"]
ARGUMENTS = ["--config", "minigpt_quickstart", *SIZES, "--levers", LEVERS, "--repeat", "4", "--steps", "8"]


class StandIn:
    """Trains nothing: writes the run that a training with known effects would have left."""

    def __init__(self):
        self.calls, self.random = [], random.Random(2)

    def __call__(self, command, log, limit):
        arguments = command[2:]
        assert command[1] == str(TRIAL)
        path = Path(next(one for one in arguments if one.startswith("training.output_dir=")).split("=", 1)[1])
        self.calls.append(path.name.rsplit("-", 1)[0])
        config = load_config(arguments).config
        if config.perf.compile != "auto":
            raise UserError(f"{path.name} failed with exit code 1, see {log}: no compiler")
        rate, memory, loss = 1000.0 * self.random.gauss(1, 0.003), 2.0, 0.0
        if config.argument("per_device_train_batch_size") == 8:
            rate, memory = 1.2 * rate, 3.0
        if config.data.num_workers == 1:
            rate *= 1.1
        if config.perf.activation_checkpointing == "full":
            rate, memory = 0.7 * rate, 1.0
        if config.data.packing == "wrapped":
            rate, loss = 1.5 * rate, 0.2
        if config.argument("optim") == "adamw_torch":
            rate, loss = 1.3 * rate, 1.0  # said to be the same, but is not
        path.mkdir(parents=True)
        lines = [
            {"step": step, names.TRAIN_LOSS: 5 - 0.1 * step + loss, names.PERF_STEP_MS: 1e3,
             names.PERF_TOKENS_PER_SECOND: rate * self.random.gauss(1, 0.003), names.PERF_MEMORY_PEAK_GIB: memory}
            for step in range(1, 9)
        ]  # fmt: skip
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (path / "env.json").write_text(json.dumps({"world_size": 1, "num_threads": 2, "gpus": []}))


@pytest.fixture(scope="module")
def advised(tmp_path_factory):
    """(stand-in, page, its JSON) of one whole command."""
    folder, stand_in = tmp_path_factory.mktemp("advise"), StandIn()
    assert main([*ARGUMENTS, "--work_dir", str(folder / "runs")], stand_in) == 0
    page = (folder / "runs" / "advice.md").read_text()
    return stand_in, page, json.loads((folder / "runs" / "advice.json").read_text())


def test_gains_are_found_with_their_size(advised):
    _, _, data = advised
    found = {one["variant"]["label"]: one for one in data["verdicts"]}
    for label, ratio in {"8 x 1 accumulated": 1.2, "1 a rank": 1.1, "wrapped": 1.5, "2 x 4 accumulated": 1.0}.items():
        speed = found[label]["speed"]
        assert speed["low"] <= ratio <= speed["high"] and speed["estimate"] == pytest.approx(ratio, rel=0.01), label
    assert found["8 x 1 accumulated"]["memory"]["estimate"] == pytest.approx(1.5)


def test_what_is_advised_was_run_again_together_and_trains_the_same(advised):
    stand_in, page, data = advised
    together = next(one for one in data["confirmed"] if one["variant"]["lever"] == "together")
    assert together["rounds"] == 4 and together["speed"]["estimate"] == pytest.approx(1.32, rel=0.01)
    assert yaml.safe_load(page.split("```yaml\n")[1].split("```")[0]) == {
        "training": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
        "data": {"num_workers": 1},
    }
    assert stand_in.calls.count("together-micro-batch-8-x-1-accumulated-workers-1-a-rank") == 4


def test_gains_that_change_training_are_told_apart_whatever_the_lever_says(advised):
    _, page, data = advised
    another = page.split("Faster, but another training")[1]
    assert "packing wrapped" in another and "optimizer adamw_torch" in another
    assert "changed, 24 %" in page  # 1.0 of 4.2 at the last step
    assert "checkpointing full: 0.500 times the memory" in page.split("Less memory")[1]


def test_what_fails_and_what_has_nothing_to_turn_is_said_and_not_repeated(advised):
    stand_in, page, data = advised
    assert data["failed"].keys() == {"compile blocks", "compile model"}
    assert "no compiler" in data["failed"]["compile blocks"]
    assert data["left_out"] == {
        "zero-stage": "one rank has nothing to shard", "pinned-memory": "on a CPU batches are not copied",
    }  # fmt: skip
    assert sum("compile-blocks" in call for call in stand_in.calls) == 1
    assert sum("checkpointing-full" in call for call in stand_in.calls) == 2  # slower by a fifth in two rounds


def test_every_variant_has_a_run_of_the_configuration_beside_it(advised):
    stand_in, _, _ = advised
    calls = stand_in.calls[2:]
    for at, call in enumerate(calls):
        if call != "as-it-is":
            assert "as-it-is" in calls[max(at - 3, 0) : at + 4], at


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--levers", "packing,magic"], "--levers magic: unknown, one of micro-batch"),
        (["--steps", "3"], "--steps 3: name 4 or more"),
        (["--repeat", "1"], "--repeat 1: name 2 or more"),
        (["--config", "nowhere"], "nowhere"),
        (["training.nonsense=1"], "nonsense"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_anything_runs(arguments, message, tmp_path, capsys):
    stand_in = StandIn()
    assert main([*arguments, "--work_dir", str(tmp_path / "runs")], stand_in) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and not stand_in.calls


def test_a_configuration_that_does_not_run_ends_it(tmp_path, capsys):
    stand_in = StandIn()
    arguments = ["--config", "debug", "perf.compile=blocks", "--work_dir", str(tmp_path / "runs")]
    assert main(arguments, stand_in) == 2
    assert "no compiler" in capsys.readouterr().err and len(stand_in.calls) == 1


def test_a_round_in_which_the_configuration_fails_is_lost_and_no_other(tmp_path, capsys):
    stand_in = StandIn()

    def fail_once(command, log, limit):
        if log.stem.startswith("as-it-is") and stand_in.calls.count("as-it-is") == 3:
            stand_in.calls.append("as-it-is")
            raise UserError("as-it-is failed with exit code -9")
        stand_in(command, log, limit)

    work_dir = tmp_path / "runs"
    arguments = [*ARGUMENTS, "--levers", "workers", "--work_dir", str(work_dir)]
    assert main(arguments, fail_once) == 0
    data = json.loads((work_dir / "advice.json").read_text())
    assert {one["rounds"] for one in data["verdicts"]} == {3}  # of 4
    assert "exit code -9" in capsys.readouterr().out


def test_ctrl_c_tells_what_is_known(tmp_path, capsys):
    stand_in = StandIn()

    def interrupt(command, log, limit):
        if len(stand_in.calls) == 9:
            raise KeyboardInterrupt
        stand_in(command, log, limit)

    assert main([*ARGUMENTS, "--levers", "workers", "--work_dir", str(tmp_path / "runs")], interrupt) == 0
    page = capsys.readouterr().out
    assert "workers" in page and "Stopped by Ctrl-C" in page


def test_a_trial_trains_and_leaves_nothing_but_its_records(tmp_path):
    changes = {**SHORT, "training.max_steps": 3, "training.output_dir": str(tmp_path / "run"), "perf.num_threads": 1}
    arguments = ["--config", "debug", f"data.store_dir={tmp_path / 'stores'}"]
    arguments += [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changes.items()]
    run_logged([sys.executable, str(TRIAL), *arguments], tmp_path / "run.log", 200)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if names.PERF_TOKENS_PER_SECOND in record] == [1, 2, 3]
    assert not any((tmp_path / "run" / name).exists() for name in ("final", "summary.json", "report.html"))
