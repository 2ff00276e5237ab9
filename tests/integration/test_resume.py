"""A resumed run is the straight run: weights, optimizer, order of the data, logged losses, bit for bit.

The straight runs save at each step; a resumed one starts, in a fresh process, from one of those checkpoints in a
directory of its own, so the two can be compared file by file through the hashes in their manifests. Four launches: the
runs of one process that go before and those that go on, the same with two ranks.
"""

import json
import shutil
from pathlib import Path

import pytest

from data_prep.store import Store
from tests.integration.conftest import Finished
from training.metrics import names

# What a checkpoint holds that is not the state of training: how long it took, and the paths of the run.
NOT_STATE = {"progress.json", "trainer_state.json", "training_args.bin"}
SAVE_EACH_STEP = ["--save_strategy", "steps", "--save_steps", "1", "training.save_total_limit=null"]
RESUME = ["--resume", "auto"]
WITHOUT_VALIDATION = ["data.packing=none", "data.validation_share=0"]

pytestmark = [pytest.mark.launch, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("resume")


def write_texts(path, texts, *lines):
    path.write_text("\n".join([*(json.dumps({"text": text}) for text in texts), *lines]) + "\n")
    return f"data.sources=[{{path: {path}}}]"


@pytest.fixture(scope="module")
def plain_flags(folder):
    """7 micro-batches an epoch under accumulation 2, dropout on, a loss logged every 3 steps: nothing lines up."""
    source = write_texts(folder / "7.jsonl", [" ".join(f"x{n} = {n * m}" for n in range(3 + m % 4)) for m in range(15)])
    return [source, *WITHOUT_VALIDATION, *SAVE_EACH_STEP, "--max_steps", "9", "--train_every", "3"]


@pytest.fixture(scope="module")
def elastic_flags(folder):
    """Documents of 20 different lengths, a row each: the tokens trained on say which rows came."""
    source = write_texts(folder / "20.jsonl", [" ".join(map(str, range(9 * n, 10 * n + 3))) for n in range(20)])
    rows = ["data.seq_len=512", "--group_by_length", "--gradient_accumulation_steps", "1"]
    return [source, *WITHOUT_VALIDATION, *rows, "--save_strategy", "steps", "--save_steps", "1"]


@pytest.fixture(scope="module")
def zero2_flags():
    return [*SAVE_EACH_STEP, "--train_every", "2", "--deepspeed", "zero2_bf16"]


@pytest.fixture(scope="module")
def stream_flags(folder):
    texts = [" ".join(f"x{n} = {n * m}" for n in range(3 + m % 40)) for m in range(400)]
    source = write_texts(folder / "texts.jsonl", texts, '{"text": 1}')
    data = ["data.streaming=true", "data.validation_rows=8", "data.on_bad_record=skip"]
    steps = ["--max_steps", "4", "--eval_strategy", "steps", "--eval_steps", "2", "--deepspeed", "zero2_bf16"]
    return [source, *data, *SAVE_EACH_STEP, *steps]


@pytest.fixture(scope="module")
def two_ranks(launch_all, folder, zero2_flags, stream_flags, elastic_flags) -> dict[str, Finished]:
    """Runs of two ranks, then those that go on with them; `elastic` stops after 2 steps, for another launch."""
    unmeasured = [*zero2_flags, "perf.enabled=false", "data.verify_packing=false"]
    # without DeepSpeed first: it leaves its settings behind
    runs = {"elastic": [*elastic_flags, "--max_steps", "2"], "zero2": zero2_flags, "zero2-unmeasured": unmeasured}
    before = launch_all("torchrun", folder, {**runs, "stream": stream_flags})
    copy_killed_at(before["zero2"], 3, "zero2-resumed")
    copy_killed_at(before["stream"], 2, "stream-resumed")
    flags = [*stream_flags, "checkpoint.verify_final=false", *RESUME]
    return before | launch_all("deepspeed", folder, {"zero2-resumed": [*zero2_flags, *RESUME], "stream-resumed": flags})


@pytest.fixture(scope="module")
def one_rank(launch_all, folder, two_ranks, plain_flags, elastic_flags) -> dict[str, Finished]:
    unmeasured = [*plain_flags, "--disable_monitoring", "--num_workers", "2"]
    before = launch_all("python", folder, {"plain": plain_flags, "plain-unmeasured": unmeasured})
    steps = {"plain-4": 4, "plain-7": 7, "plain-damaged": 8}
    for name, step in steps.items():
        copy_killed_at(before["plain"], step, name)
    damage(shutil.copytree(folder / "plain" / "checkpoint-9", folder / "plain-damaged" / "checkpoint-9"))
    # 2 x 2 rows a step: 8 of 20 are done; 12 are left, 4 steps of 3
    other = [*elastic_flags, "training.max_steps=-1", "--num_train_epochs", "1", "--batch_size", "3", *RESUME]
    runs = {name: [*plain_flags, *RESUME, "checkpoint.verify_final=false"] for name in steps}
    return before | launch_all("python", folder, {**runs, "elastic": other})


def copy_killed_at(straight, step, name):
    """What a run killed right after the save of `step` would have left."""
    target = straight.path.parent / name
    target.mkdir()
    shutil.copytree(straight.path / f"checkpoint-{step}", target / f"checkpoint-{step}")
    shutil.copy(straight.path / "metrics.jsonl", target)  # with records past the step: they must be dropped


def damage(checkpoint):
    file = checkpoint / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def state_of(finished, step):
    files = finished.checkpoint_files(step)
    return {name: digest for name, digest in files.items() if name not in NOT_STATE}


def check_same(straight, resumed, step, last):
    assert f"{resumed.path.name}/checkpoint-{step} (step {step})" in resumed.output
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


def test_two_zero2_ranks(two_ranks):
    straight = two_ranks["zero2"]
    check_unmeasured_is_equal(straight, two_ranks["zero2-unmeasured"], 6)
    check_same(straight, two_ranks["zero2-resumed"], 3, 6)
    # of the four runs the unmeasured one does not check packing, and elastic does not pack
    assert straight.output.count("packing: under sdpa") == 2
    assert two_ranks["zero2-resumed"].output.count("packing: under sdpa") == 2


def test_two_ranks_resume_a_stream(two_ranks):
    straight, resumed = two_ranks["stream"], two_ranks["stream-resumed"]
    assert "no store" in straight.output and "each unit is read by 2 of them" in straight.output
    assert len(straight.values(names.EVAL_LOSS)) == 2
    assert min(straight.values(names.PERF_USEFUL_TOKENS_PCT)) > 90
    summary = straight.json("summary.json")
    assert (summary["streamed"], summary["bad_records"], summary["store"]) == (True, 1, None)
    [bad] = [json.loads(line) for line in (straight.path / "bad_records.jsonl").read_text().splitlines()]
    assert (bad["number"], bad["reason"]) == (401, "'text' is a int, not a str")
    report = (straight.path / "report.html").read_text()
    assert "1 record(s) were left out" in report and "streamed" in report
    check_same(straight, resumed, 2, 4)
    assert resumed.json("summary.json")["bad_records"] == 1


@pytest.mark.parametrize("step", [4, 7])
def test_plain_with_accumulation_across_the_end_of_an_epoch(one_rank, step):
    straight = one_rank["plain"]
    epochs = [record["epoch"] for record in straight.metrics()]
    assert epochs[-1] > 2 and any(epoch % 1 for epoch in epochs)
    check_same(straight, one_rank[f"plain-{step}"], step, 9)


def test_a_plain_run_is_the_same_unmeasured_and_with_workers(one_rank):
    check_unmeasured_is_equal(one_rank["plain"], one_rank["plain-unmeasured"], 9)


def test_a_damaged_checkpoint_is_passed_over(one_rank):
    damaged = one_rank["plain-damaged"]
    assert "not resuming from checkpoint-9" in damaged.output and "content differs" in damaged.output
    check_same(one_rank["plain"], damaged, 8, 9)


def test_another_world_and_micro_batch_end_the_epoch_with_each_row_trained_once(one_rank):
    elastic = one_rank["elastic"]
    assert len(elastic.values(names.TRAIN_LOSS)) == 6
    assert "written by 2 ranks, this launch has 1" in elastic.output
    summary = elastic.json("summary.json")
    assert summary["tokens"] == Store.open(summary["store"]).manifest.splits["train"].tokens
    assert summary["epochs"] == 1.0 and summary["steps"] == 6
