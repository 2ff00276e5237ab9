"""What each side says of itself, what it launches, and how its result is read."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep.errors import UserError
from training.benchmark.peers.inputs import PeerRun
from training.benchmark.peers.reading import read_litgpt, read_nanogpt, read_redline, read_script
from training.benchmark.peers.sides import (
    SIDES,
    ZERO2_JSON,
    build_litgpt_config,
    build_nanogpt_flags,
    find_gpt2_shape,
)
from training.benchmark.peers.situations import CHAT, PRETRAIN, ZERO2, PeerSettings

M1 = {
    "parameters": 30_900_000, "vocab_size": 16_384, "hidden_size": 512, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 1408, "model_type": "qwen2",
    "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
}  # fmt: skip
BY_NAME = {side.name: side for side in SIDES}


@pytest.fixture
def settings(tmp_path):
    recipe = ("--config", "x.yaml")
    return PeerSettings(recipe, steps=10, seq_len=8, batch=2, rounds=1, work_dir=tmp_path)


def make_run(settings, situation, **changes):
    inputs = settings.work_dir / "inputs"
    for folder in ("train", "model"):
        (inputs / folder).mkdir(parents=True, exist_ok=True)
    np.save(inputs / "train" / "ids.npy", np.arange(160, dtype=np.int32))
    np.save(inputs / "train" / "offsets.npy", np.arange(0, 1000, 8))
    model = dict(M1)
    (inputs / "facts.json").write_text(json.dumps({"parameters": model.pop("parameters")}))
    (inputs / "model" / "config.json").write_text(json.dumps(model))
    settings = PeerSettings(**{**vars(settings), **changes})
    return PeerRun(settings, situation, ("--config", "x.yaml"), inputs, settings.work_dir / "run")


def read_settings(command):
    return json.loads(command[command.index("--settings") + 1])


def test_obstacles_are_said_in_words(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = {side.name: side.obstacle(settings) for side in SIDES}
    assert [name for name, why in said.items() if why is None] == ["redline", "stock_float32", "stock_bf16"]
    assert said["trl"] == "TRL is not installed: pip install trl"
    assert "--tcmalloc" in str(said["stock_tcmalloc"]) and "--litgpt" in str(said["litgpt"])
    given = make_run(settings, PRETRAIN, tcmalloc="/lib/x.so", litgpt=sys.executable, nanogpt=tmp_path).settings
    assert BY_NAME["stock_tcmalloc"].obstacle(given) is None and BY_NAME["litgpt"].obstacle(given) is None
    assert "it has no train.py" in str(BY_NAME["nanogpt"].obstacle(given))
    (tmp_path / "train.py").touch()
    assert BY_NAME["nanogpt"].obstacle(given) is None
    large = make_run(settings, PRETRAIN, nanogpt=tmp_path, vocab_size=100_000).settings
    assert "uint16" in str(BY_NAME["nanogpt"].obstacle(large))


def test_stock_sides_differ_in_what_they_say(settings):
    run = make_run(settings, PRETRAIN, tcmalloc="/lib/x.so")
    bf16, float32, tcmalloc = (BY_NAME[f"stock_{name}"].prepare(run) for name in ("bf16", "float32", "tcmalloc"))
    assert read_settings(bf16.command) == read_settings(tcmalloc.command)
    assert tcmalloc.environment["LD_PRELOAD"] == "/lib/x.so" and "LD_PRELOAD" not in bf16.environment
    assert read_settings(float32.command) == {**read_settings(bf16.command), "bf16": False}
    padded = BY_NAME["stock_bf16"].prepare(make_run(settings, CHAT)).command
    assert "--padded" in padded and "--padded" not in bf16.command
    assert read_settings(padded)["per_device_train_batch_size"] == 8


def test_two_ranks_have_one_launcher_and_one_json(settings):
    run = make_run(settings, ZERO2)
    redline, stock = BY_NAME["redline"].prepare(run), BY_NAME["stock_bf16"].prepare(run)
    for launch in (redline, stock):
        assert Path(launch.command[0]).name == "deepspeed" and launch.command[1:3] == ["--num_gpus", "2"]
        assert launch.environment["DS_ACCELERATOR"] == "cpu"
    assert redline.command[-2:] == ["--deepspeed", str(ZERO2_JSON)] and ZERO2_JSON.is_file()
    assert read_settings(stock.command)["deepspeed"] == str(ZERO2_JSON)


def test_useful_tokens_are_those_after_the_warm_up(settings):
    assert make_run(settings, PRETRAIN).count_timed_tokens() == 5 * 2 * 8
    assert make_run(settings, ZERO2).count_timed_tokens() == 2 * 5 * 2 * 8


def test_litgpt_gets_the_same_shape(settings):
    config = build_litgpt_config(make_run(settings, PRETRAIN))
    shape = {key: config["model_config"][key] for key in ("n_layer", "n_embd", "n_query_groups", "head_size")}
    assert shape == {"n_layer": 8, "n_embd": 512, "n_query_groups": 2, "head_size": 64}
    assert config["train"]["max_tokens"] == 10 * 2 * 8 and config["train"]["tie_embeddings"]


def test_nanogpt_gets_its_token_files_and_as_many_parameters(settings, tmp_path):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("configurator.py", "model.py", "train.py"):
        (checkout / name).touch()
    run = make_run(settings, PRETRAIN, nanogpt=checkout)
    launch = BY_NAME["nanogpt"].prepare(run)
    assert "--max_iters=9" in launch.command and "--compile=False" in launch.command and launch.folder == run.output
    ids = np.fromfile(run.output / "data" / "peers" / "train.bin", np.uint16)
    assert ids.tolist() == list(range(160))
    assert sorted(path.name for path in checkout.iterdir()) == ["configurator.py", "model.py", "train.py"]
    assert build_nanogpt_flags(run)["n_head"] == 8


@pytest.mark.parametrize(
    ("parameters", "vocab_size", "width"),
    [(30_900_000, 16_384, 512), (10_900_000, 16_384, 256), (123_600_000, 50_304, 768)],
)
def test_a_gpt2_has_as_many_parameters(parameters, vocab_size, width):
    model = {"parameters": parameters, "vocab_size": vocab_size, "hidden_size": width}
    layers, found = find_gpt2_shape(model, 512)
    assert (vocab_size + 512) * found + layers * 12 * found**2 == pytest.approx(parameters, rel=0.05)
    assert abs(found - width) <= width // 8
    with pytest.raises(UserError, match="no GPT-2"):
        find_gpt2_shape({"parameters": 1000, "vocab_size": 50_000, "hidden_size": 512}, 512)


def test_redline_is_read_from_its_records(tmp_path):
    record = {"perf/step_ms": 100.0, "train/loss": 5.0, "perf/memory_peak_gib": 1.5}
    lines = [
        {"step": 1, "time_s": 1.0, "tokens": 10, "train/loss": 6.0},
        {"step": 5, "time_s": 2.0, "tokens": 50, **record},
        {"step": 10, "time_s": 4.0, "tokens": 100, **record, "perf/step_ms": 300.0, "train/loss": 4.0,
         "eval/loss": 4.5, "perf/eval_ms": 1500.0},
        {"step": 10, "time_s": 4.1, "tokens": 100, "perf/epoch_forward_time": 1.0},
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_redline(tmp_path, 5)
    assert (found.tokens_per_second, found.step_ms, found.loss, found.peak_gib) == (25.0, 300.0, 4.0, 1.5)
    assert (found.eval_loss, found.eval_seconds) == (4.5, 7.5)  # the mean of five steps
    with pytest.raises(UserError, match="no record at step 4"):
        read_redline(tmp_path, 4)


def test_other_sides_are_read_from_what_they_write(tmp_path):
    values = {"seconds": 2.0, "step_ms": [1.0, 5.0, 3.0], "loss": 4.0, "peak_bytes": 2**30, "eval_seconds": None,
              "eval_loss": None}  # fmt: skip
    (tmp_path / "result.json").write_text(json.dumps(values))
    found = read_script(tmp_path / "result.json", tokens=100)
    assert (found.tokens_per_second, found.step_ms, found.peak_gib, found.loss) == (50.0, 3.0, 1.0, 4.0)
    log = tmp_path / "nano.log"
    lines = [
        "step 0: train loss 9, val loss 9",
        "iter 0: loss 9.0000, time 900.00ms, mfu -100.00%",
        "iter 1: loss 6.0000, time 100.00ms, mfu 1.00%",
        "iter 2: loss 4.0000, time 300.00ms, mfu 1.00%",
    ]
    log.write_text("\n".join(lines))
    found = read_nanogpt(log, 1, tokens=100, peak_bytes=2**31)
    assert (found.tokens_per_second, found.step_ms, found.peak_gib, found.loss) == (250.0, 200.0, 2.0, 4.0)
    table = tmp_path / "metrics.csv"
    table.write_text("loss,time,iter_time\n9,10,9\n6,10.5,0.4\n4,11,0.2\n")
    found = read_litgpt(table, 1, tokens=100, peak_bytes=2**30)
    assert (found.tokens_per_second, found.loss) == (100.0, 4.0) and found.step_ms == pytest.approx(300.0)
    with pytest.raises(UserError, match="3 steps, and the first 3"):
        read_litgpt(table, 3, 100, 0)
