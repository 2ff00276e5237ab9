"""The files of a training without a recipe: what is opened, put aside, resumed, and left after an error."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from training.metrics import names
from training.run_dir import RunDir
from training.trainers.own_run import OwnRun, StockTrackers, find_phases_ms
from training.trainers.recorder import Elapsed, Recorder


def build_trainer(path: Any, *, step: int = 0, rank: int = 0) -> Any:
    model = torch.nn.Linear(2, 3)
    return SimpleNamespace(
        args=SimpleNamespace(
            output_dir=str(path), disable_tqdm=False, to_dict=lambda: {"seed": 1, "size": torch.float32, "list": (1, 2)}
        ),
        state=SimpleNamespace(global_step=step, epoch=0.5),
        meter=None, model=model, accelerator=SimpleNamespace(unwrap_model=lambda model: model),
        recorder=Recorder(progress=Elapsed(2.0, 96)), callback_handler=SimpleNamespace(callbacks=[]),
        is_world_process_zero=lambda: rank == 0,
    )  # fmt: skip


def write_records(run: OwnRun, trainer: Any, steps: range) -> None:
    trainer.recorder.sinks = run.open()
    for step in steps:
        trainer.recorder.add({names.TRAIN_LOSS: 10.0 - step})
        trainer.recorder.write({"step": step, "epoch": 0.0, "time_s": float(step), "tokens": 8 * step})
        trainer.state.global_step = step


def read_steps(path: Any) -> list[int]:
    return [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_files_of_a_training_from_start_to_end(tmp_path, capsys):
    trainer = build_trainer(tmp_path)
    run = OwnRun(trainer, max_steps=3)
    write_records(run, trainer, range(1, 4))
    run.close(None)
    assert read_steps(tmp_path) == [1, 2, 3]
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())["training"]
    assert settings == {"seed": 1, "size": "torch.float32", "list": [1, 2]}
    summary = json.loads((tmp_path / "summary.json").read_text())
    expected = {"status": "finished", "steps": 3, "tokens": 96, "loss_first": 9.0, "loss_last": 7.0, "parameters": 9}
    assert {key: summary[key] for key in expected} == expected
    assert "loss" in capsys.readouterr().out and (tmp_path / "report.html").exists()


def test_a_resumed_training_continues_the_records_of_its_checkpoint(tmp_path):
    trainer = build_trainer(tmp_path)
    write_records(OwnRun(trainer, max_steps=4), trainer, range(1, 5))
    resumed = build_trainer(tmp_path, step=2)
    write_records(OwnRun(resumed, max_steps=4), resumed, range(3, 5))
    assert read_steps(tmp_path) == [1, 2, 3, 4] and not list(tmp_path.glob("records.old-*"))
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert kinds == ["start", "resume"]


def test_each_new_training_keeps_the_records_before_it(tmp_path):
    for last in (1, 2, 3):
        trainer = build_trainer(tmp_path)
        write_records(OwnRun(trainer, max_steps=last), trainer, range(1, last + 1))
    assert read_steps(tmp_path) == [1, 2, 3]
    assert [read_steps(tmp_path / f"records.old-{number}") for number in (1, 2)] == [[1], [1, 2]]


def test_an_error_is_in_summary_and_events(tmp_path, capsys):
    trainer = build_trainer(tmp_path)
    run = OwnRun(trainer, max_steps=4)
    write_records(run, trainer, range(1, 3))
    run.close(RuntimeError("out of memory\nat line 3"))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["status"], summary["error"]) == ("failed", "RuntimeError: out of memory")
    event = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])
    assert (event["kind"], event["step"], event["message"]) == ("error", 2, "RuntimeError: out of memory")
    assert not capsys.readouterr().out


def test_other_ranks_touch_nothing(tmp_path):
    run = OwnRun(build_trainer(tmp_path / "run", rank=1), max_steps=4)
    assert run.open() == []
    run.close(None)
    assert not (tmp_path / "run").exists()


def test_trackers_of_the_trainer_get_performance_under_its_own_name():
    scalars: list[Any] = []
    logged: list[Any] = []
    board = SimpleNamespace(tb_writer=SimpleNamespace(add_scalar=lambda *values: scalars.append(values)))
    wandb = SimpleNamespace(_wandb=SimpleNamespace(run=SimpleNamespace(log=logged.append)))
    callbacks = [SimpleNamespace(), board, wandb, SimpleNamespace(tb_writer=None, _wandb=None)]
    sink = StockTrackers(SimpleNamespace(callback_handler=SimpleNamespace(callbacks=callbacks)))
    sink.write({"step": 3, names.PERF_MFU_PCT: 9.5, names.TRAIN_LOSS: 2.0})
    sink.write({"step": 4, names.TRAIN_LOSS: 2.0})
    assert scalars == [(names.PERF_MFU_PCT, 9.5, 3)]
    assert logged == [{names.PERF_MFU_PCT: 9.5, "train/global_step": 3}]


def test_only_measured_phases_are_listed():
    forward = names.phase_key(names.FORWARD)
    assert find_phases_ms({forward: 3.0, names.PERF_STEP_MS: 4.0}) == {names.FORWARD: 3.0}


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl"])
def test_records_are_recognised_by_either_file(name, tmp_path):
    (tmp_path / name).write_text("")
    trainer = build_trainer(tmp_path)
    OwnRun(trainer, max_steps=1).open()
    assert (tmp_path / "records.old-1" / name).exists()
    assert RunDir(tmp_path).env.exists()
