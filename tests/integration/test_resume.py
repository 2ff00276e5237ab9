"""A resumed run is the straight run: weights, optimizer, order of the data, logged losses, bit for bit; and a step is
that of its rows, whoever shares them.

The straight runs save at each step; a resumed one starts, in a fresh process, from one of those checkpoints in a
directory of its own, so the two can be compared file by file through the hashes in their manifests. Four launches: the
runs of one process that go before and those that go on, the same with two ranks.
"""

import itertools
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from data_prep.store.store import Store
from tests.integration.conftest import ROOT, Finished
from tests.integration.plain_step import step_once
from tests.integration.several_runs import REFUSED, UNFINISHED
from training.metrics import names

# What a checkpoint holds that is not the state of training: how long it took, and the paths of the run.
NOT_STATE = {"progress.json", "trainer_state.json", "training_args.bin"}
SAVE_EACH_STEP = ["--save_strategy", "steps", "--save_steps", "1", "training.save_total_limit=null"]
RESUME = ["--resume", "auto"]
ONE_EPOCH_BY_3 = ["training.max_steps=-1", "--num_train_epochs", "1", "--batch_size", "3"]
BRIEFLY = ["perf.enabled=false", "checkpoint.verify_final=false"]
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
    return [source, *WITHOUT_VALIDATION, *rows, *BRIEFLY, "--save_strategy", "steps", "--save_steps", "1"]


@pytest.fixture(scope="module")
def descent_flags(folder):
    """Of very different lengths and shares of tokens with loss: each epoch is one step of 4 micro-batches."""
    sizes = [(4, 48), (50, 4), (3, 52), (54, 2), (2, 25), (30, 3), (20, 10), (1, 20), (3, 9), (9, 4), (8, 1), (1, 8)]
    pairs = [{"prompt": count("x", a), "completion": count(f"{n}*", b)} for n, (a, b) in enumerate(sizes)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    source = f"data.sources=[{{path: {folder / 'pairs.jsonl'}}}]"
    rows = ["data.seq_len=512", "data.max_tokens_per_batch=512", "model.config.attention_dropout=0"]
    plainly = ["--optim=sgd", "--learning_rate=0.5", "--max_grad_norm=0", "--weight_decay=0", "--bf16=false"]
    return [source, *WITHOUT_VALIDATION, *rows, *plainly, "--max_steps", "2", *BRIEFLY, *SAVE_EACH_STEP]


def count(word, size):
    return " ".join(f"{word}{number}" for number in range(size))


@pytest.fixture(scope="module")
def zero2_float32(folder):
    settings = json.loads((ROOT / "ds_configs" / "zero2_bf16.json").read_text())
    path = folder / "zero2_float32.json"
    path.write_text(json.dumps(settings | {"bf16": {"enabled": False}}))
    return ["--deepspeed", str(path)]


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
def two_ranks(
    launch_all, folder, zero2_flags, stream_flags, elastic_flags, descent_flags, zero2_float32
) -> dict[str, Finished]:
    """Runs of two ranks, then those that go on with them; the elastic ones stop after 2 steps, for another launch."""
    unmeasured = [*zero2_flags, "perf.enabled=false", "data.verify_packing=false", UNFINISHED]
    # without DeepSpeed first: it leaves its settings behind
    runs = {
        "no-data": [f"data.sources=[{{path: {folder / 'nothing'}}}]", REFUSED],
        "elastic": [*elastic_flags, "--max_steps", "2", UNFINISHED],
        "descent": descent_flags,
        "zero2": zero2_flags,
        "zero2-unmeasured": unmeasured,
        "zero2-elastic": [*elastic_flags, "--max_steps", "2", "--deepspeed", "zero2_bf16", UNFINISHED],
        "zero2-descent": [*descent_flags, *zero2_float32],
        "stream": stream_flags,
    }
    before = launch_all("torchrun", folder, runs)
    copy_killed_at(before["zero2"], 3, "zero2-resumed")
    copy_killed_at(before["zero2"], 6, "zero2-unfinished")
    copy_killed_at(before["stream"], 2, "stream-resumed")
    after = {
        "zero2-unfinished": [*zero2_flags, "data.verify_packing=false", *RESUME],
        "zero2-resumed": [*zero2_flags, *RESUME, UNFINISHED],
        # 2 x 2 rows a step: 8 of 20 are done; 12 are left, 2 steps of 2 x 3
        "zero2-elastic": [*elastic_flags, *ONE_EPOCH_BY_3, "--deepspeed", "zero2_bf16", *RESUME],
        "stream-resumed": [*stream_flags, "checkpoint.verify_final=false", *RESUME],
    }
    return before | launch_all("deepspeed", folder, after)


@pytest.fixture(scope="module")
def one_rank(launch_all, folder, two_ranks, plain_flags, elastic_flags) -> dict[str, Finished]:
    unmeasured = [*plain_flags, "perf.enabled=false", "--num_workers", "2", UNFINISHED]
    before = launch_all("python", folder, {"plain": plain_flags, "plain-unmeasured": unmeasured})
    steps = {"plain-4": 4, "plain-7": 7, "plain-damaged": 8}
    for name, step in {**steps, "plain-unfinished": 9}.items():
        copy_killed_at(before["plain"], step, name)
    damage(shutil.copytree(folder / "plain" / "checkpoint-9", folder / "plain-damaged" / "checkpoint-9"))
    # 2 x 2 rows a step: 8 of 20 are done; 12 are left, 4 steps of 3
    runs = {name: [*plain_flags, *RESUME, UNFINISHED] for name in steps}
    other = {
        "plain-unfinished": [*plain_flags, *RESUME],
        "elastic": [*elastic_flags, *ONE_EPOCH_BY_3, *RESUME],
        "plain": [*plain_flags, "--max_steps", "10", "data.seed=7", *RESUME, REFUSED],
    }
    return before | launch_all("python", folder, {**runs, **other})


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
    check_token_rates(resumed)


def check_token_rates(resumed):
    """Of each step, the first after the resume as well: the tokens it added over the time it took."""
    steps = [record for record in resumed.metrics() if names.PERF_STEP_MS in record]
    for before, now in itertools.pairwise(steps):
        rate, seconds = now[names.PERF_TOKENS_PER_SECOND], now[names.PERF_STEP_MS] / 1e3
        assert rate * seconds == pytest.approx(now["tokens"] - before["tokens"])


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
    assert straight.output.count("packing: under redline_cpu") == 2
    assert two_ranks["zero2-resumed"].output.count("packing: under redline_cpu") == 2


def test_two_ranks_resume_a_stream(two_ranks):
    straight, resumed = two_ranks["stream"], two_ranks["stream-resumed"]
    assert "no store" in straight.output and "each is read whole by 2 of them" in straight.output
    assert len(straight.values(names.EVAL_LOSS)) == 2
    assert min(straight.values(names.PERF_USEFUL_TOKENS_PCT)) > 90
    summary = straight.json("summary.json")
    assert (summary["streamed"], summary["bad_records"], summary["store"]) == (True, 1, None)
    [bad] = [json.loads(line) for line in (straight.path / "bad_records.jsonl").read_text().splitlines()]
    assert (bad["number"], bad["reason"]) == (401, "'text' is a int, not a str")
    report = (straight.path / "report.html").read_text()
    assert "1 record(s) were excluded" in report and "streamed" in report
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


def test_curves_are_drawn_at_the_end_only_without_plot_every(one_rank):
    drawn = {path.name for path in (one_rank["plain"].path / "plots").glob("loss*")}
    assert drawn == {"loss.png", "loss_recent.png", "loss_latest.png", "loss_final.png"}


def test_a_damaged_checkpoint_is_passed_over(one_rank):
    damaged = one_rank["plain-damaged"]
    assert "not resuming from checkpoint-9" in damaged.output and "content differs" in damaged.output
    check_same(one_rank["plain"], damaged, 8, 9)


@pytest.mark.parametrize("name", ["plain", "zero2"])
def test_a_run_that_was_stopped_behind_its_last_step_is_finished(one_rank, two_ranks, name):
    runs = one_rank | two_ranks
    straight, finished = runs[name], runs[f"{name}-unfinished"]
    assert "steps are done, but there is no checked final/: finishing the run" in finished.output
    assert finished.json("summary.json")["status"] == "finished" and (finished.path / "report.html").is_file()
    assert [r["step"] for r in finished.metrics()] == [r["step"] for r in straight.metrics()]
    weights, expected = (load_file(run.path / "final" / "model.safetensors") for run in (finished, straight))
    assert weights.keys() == expected.keys()
    assert all(weights[key].equal(expected[key]) for key in expected)


def test_another_world_and_micro_batch_end_the_epoch_with_each_row_trained_once(one_rank):
    check_epoch(one_rank["elastic"], steps=6)
    assert "written with world size 2, this launch has 1" in one_rank["elastic"].output


def test_another_micro_batch_of_zero2_ranks_ends_the_epoch_with_each_row_trained_once(two_ranks):
    check_epoch(two_ranks["zero2-elastic"], steps=4)


def check_epoch(elastic, steps):
    assert len(elastic.values(names.TRAIN_LOSS)) == steps
    summary = elastic.json("summary.json")
    assert summary["tokens"] == Store.open(summary["store"]).manifest.splits["train"].tokens
    assert summary["epochs"] == 1.0 and summary["steps"] == steps


def test_a_run_does_not_go_on_in_another_order(one_rank):
    [line] = [line for line in one_rank["plain-4"].output.splitlines() if line.startswith("error: ")]
    assert "data.seed was 0, is 7: resume with the data as it was, or start from scratch with --resume never" in line


def test_what_is_wrong_with_the_data_is_found_once_and_all_ranks_end(two_ranks):
    output = two_ranks["zero2"].output  # of the whole launch; the ranks' lines may run into each other
    assert output.count("nothing is not a file, a directory") == 2
    assert output.count("error on rank 1: ") == 1 and output.count("error: ") == 1


@pytest.mark.parametrize("name", ["descent", "zero2-descent"])
def test_a_step_descends_the_mean_over_all_tokens_with_loss(two_ranks, name):
    """Two ranks, two micro-batches each, each of another number of tokens: no mean of means."""
    run = two_ranks[name]
    store = Store.open(run.json("summary.json")["store"])
    progress = run.json("checkpoint-1/progress.json")
    assert progress["position"] == len(store.split("train")) == 12
    expected = step_once(run.path / "checkpoint-1", store, learning_rate=0.5)
    before, after = (load_file(run.path / f"checkpoint-{step}" / "model.safetensors") for step in (1, 2))
    for key, weight in expected.items():
        step = weight - before[key]
        assert (after[key] - weight).norm() < 1e-3 * step.norm(), key
