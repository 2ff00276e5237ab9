"""Options do what they say in a real training: smoothing, noise, a changed resume, the blocks of a DeepSpeed JSON.

One launch: runs of one process, those without DeepSpeed first.
"""

import json
import math
import os

import pytest
import torch

from tests.integration.several_runs import REFUSED, UNFINISHED
from training.config import load_config
from training.metrics import names
from training.run_lock import RunLock

pytestmark = [pytest.mark.launch, pytest.mark.timeout(600)]

COSINE = ["--lr_scheduler_type", "cosine", "--max_steps", "4", "perf.enabled=false", "data.verify_packing=false"]
SAVING = ["--save_strategy", "steps", "--save_steps", "2", "training.save_total_limit=null"]
EVALUATING = ["--eval_strategy", "steps", "--eval_steps", "2", "--eval_on_start", "true"]
CHANGED = ["--learning_rate", "1e-4", "--weight_decay", "0.5", "--max_grad_norm", "0.25"]
SCHEDULE = {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto"}}
BLOCKS = {
    "adamw": {
        "optimizer": {"type": "AdamW", "params": {"torch_adam": True, "lr": "auto"}},
        "zero_optimization": {"stage": 2},
        "flops_profiler": {"enabled": True, "profile_step": 2},
        "comms_logger": {"enabled": True},
    },
    "schedule": {"scheduler": SCHEDULE, "zero_optimization": {"stage": 1}},
    "zero3": {"zero_optimization": {"stage": 3}},
    "quantised": {"zero_optimization": {"stage": 3, "zero_quantized_weights": True}},
}


@pytest.fixture(scope="module")
def runs(launch_all, recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("options")
    config = folder / "tiny.yaml"  # a schedule block stands in the place of this key
    config.write_text(recipe.read_text().replace("  lr_scheduler_type: constant\n", ""))
    for name, values in BLOCKS.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    straight = [*COSINE, *SAVING, *EVALUATING]
    from_2 = ["--resume", str(folder / "straight" / "checkpoint-2")]
    zero2 = [*COSINE, *SAVING, "--deepspeed", "zero2_bf16"]
    commands = {
        "straight": [*straight, UNFINISHED],
        "smoothed": [*COSINE, *EVALUATING, "--label_smoothing_factor", "0.3", UNFINISHED],
        "noise": [*COSINE, *EVALUATING, "--neftune_noise_alpha", "100", UNFINISHED],
        "best": [*COSINE, *EVALUATING[:4], "--save_strategy", "best", UNFINISHED],
        "changed": [*straight, *CHANGED, *from_2, UNFINISHED],
        "refused": [*straight, "--optim", "sgd", *from_2, REFUSED],
        "held": [*COSINE, REFUSED],
        "auto": [*straight, "perf.activation_checkpointing=auto", UNFINISHED],
        "zero2": [*zero2, UNFINISHED],
        "zero2-selective": [*zero2, "perf.activation_checkpointing=selective", UNFINISHED],
        "zero2-every-2": [
            *zero2,
            "perf.activation_checkpointing=every_2",
            "--resume",
            str(folder / "zero2" / "checkpoint-2"),
            UNFINISHED,
        ],
        "zero2-changed": [*zero2, *CHANGED, "--resume", str(folder / "zero2" / "checkpoint-2"), UNFINISHED],
        "adamw": [*COSINE, "--deepspeed", str(folder / "adamw.json"), UNFINISHED],
        "schedule": [*COSINE[2:], "--deepspeed", str(folder / "schedule.json"), UNFINISHED],
        "zero3": [*COSINE, "--deepspeed", str(folder / "zero3.json")],
        "zero3-selective": [
            *COSINE,
            "--deepspeed",
            str(folder / "zero3.json"),
            "perf.activation_checkpointing=selective",
            UNFINISHED,
        ],
        "quantised": [*COSINE, "--deepspeed", str(folder / "quantised.json"), REFUSED],
    }
    (folder / "held").mkdir()
    lock = RunLock(folder / "held")
    lock.acquire()
    try:
        return launch_all("python", folder, commands, config)
    finally:
        lock.release()


def rates(run):
    return [record[names.TRAIN_LEARNING_RATE] for record in run.metrics() if names.TRAIN_LEARNING_RATE in record]


def cosine(peak, step):
    """Before `step` (1, …) of 4 without warmup."""
    return peak * (1 + math.cos(math.pi * (step - 1) / 4)) / 2


def test_an_evaluation_is_never_smoothed_and_the_first_is_of_step_0(runs):
    straight, smoothed = runs["straight"], runs["smoothed"]
    assert [record["step"] for record in straight.metrics()] == [0, 1, 2, 3, 4]
    assert smoothed.values(names.EVAL_LOSS)[0] == pytest.approx(straight.values(names.EVAL_LOSS)[0], rel=1e-4)
    assert smoothed.values(names.EVAL_LOSS)[-1] != straight.values(names.EVAL_LOSS)[-1]
    bits, losses = smoothed.values(names.EVAL_BITS_PER_BYTE), smoothed.values(names.EVAL_LOSS)
    assert bits[0] == pytest.approx(straight.values(names.EVAL_BITS_PER_BYTE)[0], rel=1e-4)
    assert bits[-1] / bits[0] == pytest.approx(losses[-1] / losses[0])
    assert not smoothed.values(names.TRAIN_BITS_PER_BYTE)  # smoothed, it is no length of a code
    assert smoothed.values(names.TRAIN_LOSS)[0] != straight.values(names.TRAIN_LOSS)[0]


def test_noise_is_in_the_training_alone(runs):
    straight, noise = runs["straight"], runs["noise"]
    assert noise.values(names.EVAL_LOSS)[0] == straight.values(names.EVAL_LOSS)[0]
    assert abs(noise.values(names.TRAIN_LOSS)[0] - straight.values(names.TRAIN_LOSS)[0]) > 1e-3  # rounding: 1e-5


def test_the_best_is_saved(runs):
    losses = runs["best"].values(names.EVAL_LOSS)
    lowest = min(losses)
    best = [2 * (number + 1) for number, loss in enumerate(losses) if loss == min(losses[: number + 1])]
    state = runs["best"].json(f"checkpoint-{best[-1]}/trainer_state.json")
    assert state["best_metric"] == pytest.approx(lowest)


def test_what_changed_counts_from_the_first_resumed_step_and_is_told(runs):
    run = runs["changed"]
    assert rates(run) == pytest.approx([cosine(1e-3, 1), cosine(1e-3, 2), cosine(1e-4, 3), cosine(1e-4, 4)])
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    told = {event["key"]: (event["old"], event["new"], event["step"]) for event in events if event["kind"] == "change"}
    assert told == {
        "training.learning_rate": (1e-3, 1e-4, 2),
        "training.weight_decay": (0.1, 0.5, 2),
        "training.max_grad_norm": (1.0, 0.25, 2),
    }
    assert "resume: training.learning_rate: 0.001 -> 0.0001 from step 3" in run.output
    optimizer = torch.load(run.path / "checkpoint-4" / "optimizer.pt", weights_only=True)
    assert [group["weight_decay"] for group in optimizer["param_groups"]] == [0.5, 0.0]
    settings = run.json("checkpoint-4/manifest.json")["settings"]
    assert settings["training.learning_rate"] == 1e-4
    assert "learning_rate: 0.0001" in (run.path / "config.yaml").read_text()


def test_what_cannot_change_is_refused_and_nothing_is_touched(runs):
    output = runs["refused"].output
    assert 'training.optim was "adamw_torch_fused" and is now "sgd"' in output
    assert not runs["refused"].path.exists()


def test_a_model_that_zero_cannot_hold_here_is_refused_in_one_line(runs):
    output = runs["quantised"].output
    assert "error: deepspeed: the model cannot be built: " in output and "Traceback" not in output
    assert not runs["quantised"].path.exists()


def test_a_directory_in_use_is_refused_by_name(runs):
    assert f"{runs['held'].path} is in use by process {os.getpid()} on " in runs["held"].output
    assert list(runs["held"].path.iterdir()) == []


def test_what_changed_counts_under_zero_as_well(runs):
    straight, run = runs["zero2"], runs["zero2-changed"]
    assert rates(straight) == pytest.approx([cosine(1e-3, step) for step in (1, 2, 3, 4)])
    assert rates(run) == pytest.approx([cosine(1e-3, 1), cosine(1e-3, 2), cosine(1e-4, 3), cosine(1e-4, 4)])
    [shard] = (run.path / "checkpoint-4").rglob("*optim_states.pt")
    state = torch.load(shard, weights_only=False)["optimizer_state_dict"]
    assert state["clip_grad"] == 0.25
    groups = state["base_optimizer_state"]["param_groups"] if "base_optimizer_state" in state else None
    assert groups is None or [group["weight_decay"] for group in groups] == [0.5, 0.0]


def losses(run):
    return [record[names.TRAIN_LOSS] for record in run.metrics() if names.TRAIN_LOSS in record]


@pytest.mark.parametrize(
    ("stored", "checkpointed"),
    [("zero2", "zero2-selective"), ("zero2", "zero2-every-2"), ("zero3", "zero3-selective"), ("straight", "auto")],
)
def test_checkpointing_changes_no_loss_and_may_change_on_a_resume(runs, stored, checkpointed):
    assert losses(runs[checkpointed])[-2:] == losses(runs[stored])[-2:]


def test_what_auto_chose_is_said_and_stands_in_the_run(runs):
    assert "activation checkpointing: off (auto: planned peaks with 2 rows in GiB: off 0.0" in runs["auto"].output
    again = load_config(["--config", str(runs["auto"].path / "config.yaml")])
    assert again.config.perf.activation_checkpointing == "off"


def test_an_optimizer_block_trains_with_the_recipe_s_numbers(runs):
    got = runs["adamw"].json("ds_config.json")["optimizer"]["params"]
    assert (got["lr"], got["betas"], got["eps"], got["weight_decay"]) == (1e-3, [0.9, 0.95], 1e-8, 0.1)
    assert "missing in the DeepSpeed JSON, so taken from the recipe: optimizer.params.betas" in runs["adamw"].output


def test_a_schedule_block_has_the_recipe_s_rate(runs):
    assert max(rates(runs["schedule"])) == 1e-3
    assert runs["schedule"].json("ds_config.json")["scheduler"]["params"]["warmup_max_lr"] == 1e-3


def test_zero_3_saves_a_whole_model(runs):
    assert runs["zero3"].json("summary.json")["status"] == "finished"
    assert (runs["zero3"].path / "final" / "model.safetensors").is_file()
