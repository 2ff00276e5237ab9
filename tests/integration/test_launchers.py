"""The same `train.py` under four launchers, with accumulation, evaluation in between and both trackers."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.callbacks.test_sinks import read_wandb_history
from tests.integration.conftest import LAUNCHERS, ROOT
from training.kernels.cpu import build
from training.metrics import names
from training.run_dir import RunDir

EVERY_STEP = {
    names.TRAIN_LOSS, names.TRAIN_GRAD_NORM, names.TRAIN_LEARNING_RATE, names.PERF_STEP_MS,
    names.PERF_TOKENS_PER_SECOND, names.PERF_TOKENS_PER_SECOND_PER_DEVICE, names.PERF_USEFUL_TOKENS_PCT,
    names.PERF_MFU_PCT, names.PERF_MFU_PALM_PCT, names.PERF_HFU_PCT, names.PERF_MODEL_TFLOPS_PER_DEVICE,
    names.PERF_MEMORY_ALLOCATED_GIB, names.PERF_MEMORY_PEAK_GIB,
    *map(names.phase_key, (names.DATA_WAIT, names.FORWARD, names.BACKWARD, names.OPTIMIZER, names.OTHER)),
}  # fmt: skip


def check_run(finished, launcher, ranks):
    steps = [record for record in finished.metrics() if names.PERF_STEP_MS in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    for record in steps:
        assert record.keys() >= EVERY_STEP
        phases = sum(record.get(names.phase_key(phase), 0.0) for phase in names.PHASES)
        assert phases == pytest.approx(record[names.PERF_STEP_MS], rel=1e-3)
        per_device = record[names.PERF_TOKENS_PER_SECOND_PER_DEVICE]
        assert record[names.PERF_TOKENS_PER_SECOND] == pytest.approx(ranks * per_device)
    assert steps[3][names.phase_key(names.EVAL)] > 0  # evaluation after step 3 lies in the window of step 4 ...
    assert names.phase_key(names.EVAL) not in steps[0]
    assert [record["step"] for record in finished.metrics() if names.EVAL_LOSS in record] == [3, 6]
    check_epoch_memory(finished)
    assert 5.5 < finished.values(names.TRAIN_LOSS)[0] < 7.0  # ln 512 = 6.24
    # 6 steps of 2 micro-steps of 2 rows of 64, on each rank; best-fit packing leaves next to no padding
    tokens = 6 * 2 * 2 * 64 * ranks
    assert 0.97 * tokens <= finished.metrics()[-1]["tokens"] <= tokens
    environment = finished.json("env.json")
    assert (environment["launcher"], environment["world_size"]) == (launcher, ranks)
    summary = finished.json("summary.json")
    assert summary["status"] == "finished" and summary["sample"]["text"]
    assert "logits equal those in memory" in finished.output
    assert "<html" in (finished.path / "report.html").read_text()
    assert (finished.path / "plots" / "loss.png").stat().st_size > 1000


def check_epoch_memory(finished):
    """The mean of an epoch is of the order of what its records say of rank 0, whichever steps have one."""
    resident = [gib * 2**30 / 1e9 for gib in finished.values(names.PERF_MEMORY_ALLOCATED_GIB)]
    means = finished.values(names.PERF_EPOCH_AVG_MEMORY_GB)
    assert means and all(0.7 * min(resident) < mean < 1.3 * max(resident) for mean in means), (means, resident)


ZERO_JSONS = ["zero1_bf16", "zero3_bf16", "zero3_bf16_offload"]


@pytest.mark.launch
@pytest.mark.timeout(600)
@pytest.mark.parametrize("launcher", list(LAUNCHERS))
def test_launcher(launch, launch_all, tmp_path, launcher):
    flags = ["--eval_strategy", "steps", "--eval_steps", "3", "training.report_to=[wandb, tensorboard]"]
    if launcher == "deepspeed":
        runs = {"run": [*flags, "--deepspeed_config", str(ROOT / "ds_configs" / "zero2_bf16.json")]}
        short = ["--max_steps", "2", "--save_strategy", "steps", "perf.log_every=2", "--deepspeed"]
        others = launch_all(launcher, tmp_path, runs | {name: [*short, name] for name in ZERO_JSONS})
        finished = others.pop("run")
        check_deepspeed(finished, others)
    else:
        finished = launch(launcher, "run", *flags)
    check_run(finished, launcher, ranks=1 if launcher == "python" else 2)

    history = read_wandb_history(RunDir(finished.path))
    assert [entry["perf/mfu_pct"] for entry in history if "perf/mfu_pct" in entry] == finished.values("perf/mfu_pct")
    events = EventAccumulator(str(finished.path / "tensorboard"))
    events.Reload()
    assert {"perf/mfu_pct", "train/loss", "eval/loss"} <= set(events.Tags()["scalars"])


@pytest.mark.launch
def test_what_the_last_step_brings_is_told_whatever_the_intervals(launch):
    rare = ["--train_every", "50", "perf.log_every=50", "--eval_strategy", "steps", "--eval_steps", "6"]
    large = ["--per_device_eval_batch_size", "256", "perf.loss_kernel=plain"]  # with all logits
    finished = launch("python", "run", *rare, *large)
    losses = [record["step"] for record in finished.metrics() if names.TRAIN_LOSS in record]
    summary = finished.json("summary.json")
    assert losses == [1, 6] and summary["loss_last"] == finished.values(names.TRAIN_LOSS)[-1]
    # The evaluation after the last step is large, and in no record.
    assert summary["peak_memory_gib"] > max(finished.values(names.PERF_MEMORY_PEAK_GIB)) + 0.004


@pytest.mark.launch
def test_a_ceiling_that_a_run_exceeds_is_told_and_forgotten(launch, tmp_path, monkeypatch):
    monkeypatch.setenv(build.VARIABLE, str(build.find_cache_dir()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    launch("python", "first")
    cache = tmp_path / "cache" / "redline" / "matmuls.json"
    entries = json.loads(cache.read_text())
    ceilings = [key for key in entries if key.startswith("ceiling")]
    assert ceilings
    # A busy machine may have made the first run forget its own.
    measured = next(found[0] for found in entries.values() if found)
    for key in ceilings:
        entries[key] = [{**measured, "tflops": 1e-9}] * 3  # as on a machine that did something else
    cache.write_text(json.dumps(entries))
    finished = launch("python", "second")
    assert "the run was faster" in finished.output and "of the 1e-09 TFLOP/s" not in finished.output
    kept = json.loads(cache.read_text())
    assert not any(kept[key] for key in ceilings) and any(kept.values())


def check_deepspeed(finished, others):
    """The JSON was taken whole, and others take its place freely."""
    got = finished.json("ds_config.json")
    assert got["zero_optimization"]["stage"] == 2 and got["bf16"]["enabled"]
    assert (got["train_micro_batch_size_per_gpu"], got["gradient_accumulation_steps"]) == (2, 2)
    assert "DDP constructor" not in finished.output
    for name, other in others.items():
        got = other.json("ds_config.json")
        asked = json.loads((ROOT / "ds_configs" / f"{name}.json").read_text())["zero_optimization"]
        assert got["zero_optimization"]["stage"] == asked["stage"]
        assert ("offload_optimizer" in got["zero_optimization"]) == ("offload" in name)
        assert len(other.values(names.TRAIN_LOSS)) == 2
        check_epoch_memory(other)
    assert finished.output.count("logits equal those in memory") == 1 + len(others)
