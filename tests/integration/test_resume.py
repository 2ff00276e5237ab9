"""A resumed run is the straight run: weights, optimizer, order of the data, logged losses, bit for bit.

The straight run saves at each step; the resumed one starts from one of those checkpoints in a directory of its own, so
the two can be compared file by file through the hashes in their manifests.
"""

import json
import shutil

import pytest

from data_prep.store import Store
from tests.integration.conftest import ROOT
from training.metrics import names

# What a checkpoint holds that is not the state of training: how long it took, and the paths of the run.
NOT_STATE = {"progress.json", "trainer_state.json", "training_args.bin"}


def state_of(finished, step):
    files = finished.checkpoint_files(step)
    return {name: digest for name, digest in files.items() if name not in NOT_STATE}


def copy_killed_at(straight, step, name):
    """What a run killed right after the save of `step` would have left."""
    target = straight.path.parent / name
    target.mkdir()
    shutil.copytree(straight.path / f"checkpoint-{step}", target / f"checkpoint-{step}")
    shutil.copy(straight.path / "metrics.jsonl", target)  # with records past the step: they must be dropped


def check_same(straight, resumed, step, last):
    assert f"step {step})" in resumed.output
    assert state_of(resumed, last) == state_of(straight, last)
    for key in (names.TRAIN_LOSS, names.TRAIN_GRAD_NORM, names.TRAIN_LEARNING_RATE):
        assert resumed.values(key) == straight.values(key), key
    assert [r["step"] for r in resumed.metrics()] == [r["step"] for r in straight.metrics()]
    assert resumed.metrics()[-1]["tokens"] == straight.metrics()[-1]["tokens"]
    times = [record["time_s"] for record in resumed.metrics()]
    assert times == sorted(times)


def check_unmeasured_is_equal(measured, unmeasured, last):
    """Instrumentation changes no bit of what is trained, nor do workers or the packing check."""
    assert unmeasured.values(names.TRAIN_LOSS) == measured.values(names.TRAIN_LOSS)
    assert state_of(unmeasured, last) == state_of(measured, last)
    assert unmeasured.values(names.PERF_STEP_MS) == []


SAVE_EACH_STEP = ["--save_strategy", "steps", "--save_steps", "1", "training.save_total_limit=null"]
RESUME = ["--resume", "auto"]


@pytest.mark.launch
def test_plain_with_accumulation_across_the_end_of_an_epoch(launch_all, tmp_path):
    """7 micro-batches an epoch under accumulation 2, dropout on, a loss logged every 3 steps: nothing lines up."""
    documents = [{"text": " ".join(f"x{n} = {n * m}" for n in range(3 + m % 4))} for m in range(15)]
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    flags = [*SAVE_EACH_STEP, "--max_steps", "9", "--train_every", "3", "data.packing=none", "data.validation_share=0"]
    flags += [f"data.sources=[{{path: {tmp_path / 'documents.jsonl'}}}]"]
    runs = {"straight": flags, "unmeasured": [*flags, "--disable_monitoring", "--num_workers", "2"]}
    straight, unmeasured = launch_all("python", runs)
    epochs = [record["epoch"] for record in straight.metrics()]
    assert epochs[-1] > 2 and any(epoch % 1 for epoch in epochs)
    check_unmeasured_is_equal(straight, unmeasured, 9)

    steps = {"resumed-4": 4, "resumed-7": 7}
    for name, step in steps.items():
        copy_killed_at(straight, step, name)
    damage(straight.path / "checkpoint-9" / "model.safetensors")
    resumed = launch_all("python", {name: [*flags, *RESUME] for name in (*steps, "straight")})
    for finished, step in zip(resumed, steps.values(), strict=False):
        check_same(straight, finished, step, 9)
    assert "not resuming from checkpoint-9" in resumed[-1].output and "content differs" in resumed[-1].output
    assert "step 8)" in resumed[-1].output
    assert [record["step"] for record in straight.metrics()][-1] == 9


def damage(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.launch
def test_two_zero2_ranks(launch, launch_all):
    flags = [*SAVE_EACH_STEP, "--train_every", "2", "--deepspeed", str(ROOT / "ds_configs" / "zero2_bf16.json")]
    runs = {"straight": flags, "unmeasured": [*flags, "perf.enabled=false", "data.verify_packing=false"]}
    straight, unmeasured = launch_all("torchrun", runs)
    check_unmeasured_is_equal(straight, unmeasured, 6)
    assert straight.output.count("packing: under sdpa") == 1

    copy_killed_at(straight, 3, "resumed")
    resumed = launch("deepspeed", "resumed", *flags, *RESUME)
    assert "packing: under sdpa" in resumed.output
    check_same(straight, resumed, 3, 6)


@pytest.mark.launch
def test_another_world_and_micro_batch_end_the_epoch_with_each_row_trained_once(launch, tmp_path):
    """Documents of 20 different lengths: the tokens trained on say which rows came."""
    documents = [{"text": " ".join(f"{number}" for number in range(9 * n, 10 * n + 3))} for n in range(20)]
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    flags = [f"data.sources=[{{path: {tmp_path / 'documents.jsonl'}}}]", "data.packing=none", "data.validation_share=0"]
    flags += ["data.seq_len=512", "--group_by_length", "--save_strategy", "steps", "--save_steps", "1"]
    flags += ["--gradient_accumulation_steps", "1"]
    launch("torchrun", "run", *flags, "--max_steps", "2")  # 2 x 2 rows a step: 8 of 20
    epoch = [*flags, "training.max_steps=-1", "--num_train_epochs", "1", "--batch_size", "3", *RESUME]
    alone = launch("python", "run", *epoch)  # 12 left: 4 steps of 3
    assert len(alone.values(names.TRAIN_LOSS)) == 6
    assert "written by 2 ranks, this launch has 1" in alone.output
    summary = alone.json("summary.json")
    assert summary["tokens"] == Store.open(summary["store"]).manifest.splits["train"].tokens
    assert summary["epochs"] == 1.0 and summary["steps"] == 6
