"""The plan command: text, JSON, flags, errors. Needs no GPU, weights, data or network."""

import json

import pytest

from training.plan import main, split_flags

TINY = [
    "model.kind=minigpt", 'model.config={"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}',
    "data.seq_len=64", "tokenizer.vocab_size=300", "training.max_steps=10", "training.per_device_train_batch_size=2",
]  # fmt: skip


def run_json(capsys, *argv):
    assert main([*TINY, *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_text_names_every_part(capsys):
    assert main([*TINY, "--device", "NVIDIA L4"]) == 0
    text = capsys.readouterr().out
    for words in ("parameters", "optimizer states", "activations after forward", "peak on the device", "largest micro"):
        assert words in text
    assert "assumed MFU of 40 %" in text


def test_work_by_hand(capsys):
    plan = run_json(capsys, "training.gradient_accumulation_steps=3", "--world_size", "2")
    assert plan["tokens_per_step"] == 2 * 3 * 2 * 64
    assert plan["total_tokens"] == 10 * plan["tokens_per_step"]
    assert plan["total_flops"] == 10 * plan["step_flops"]
    assert plan["device"] is None
    assert plan["seconds"] is None


def test_time_at_the_rate_of_a_finished_run(capsys, tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps({"mfu_pct": 20.0, "peak": {"tflops": 0.5, "device": "a CPU"}}))
    plan = run_json(capsys, "--world_size", "2", "--like", str(tmp_path))
    # 20 % of 0.5 TFLOP/s on each of two ranks
    assert plan["seconds"] == pytest.approx(plan["total_flops"] / (2 * 0.1e12))
    assert str(tmp_path) in plan["rate"]
    (tmp_path / "summary.json").write_text("{}")
    assert main([*TINY, "--like", str(tmp_path)]) == 2
    assert "--like" in capsys.readouterr().err


def test_parameters_of_the_vocabulary_to_be_trained(capsys):
    small, large = run_json(capsys), run_json(capsys, "tokenizer.vocab_size=400")
    assert large["parameters"] - small["parameters"] == 100 * 64


def test_zero_shards_states(capsys):
    def states(plan):
        return next(part["bytes"] for part in plan["parts"] if part["name"] == "optimizer states")

    plain = run_json(capsys)
    sharded = run_json(capsys, "--deepspeed", "zero2_bf16", "--world-size=4")
    assert states(plain) == pytest.approx(4 * states(sharded), rel=0.01)
    assert "ZeRO-2" in sharded["setup"]


def test_states_are_those_of_the_optimizer_that_will_run(capsys, tmp_path):
    def states(*argv):
        plan = run_json(capsys, *argv)
        found = next(part["bytes"] for part in plan["parts"] if part["name"] == "optimizer states")
        return found / plan["trained_parameters"], any("assumes Adam's" in note for note in plan["notes"])

    def in_json(**block):
        file = tmp_path / "deepspeed.json"
        block["params"] = {"lr": "auto", **block.get("params", {})}
        zero = {"zero_optimization": {"stage": 1}, "zero_allow_untested_optimizer": True}
        file.write_text(json.dumps({"bf16": {"enabled": True}, **zero, "optimizer": block}))
        return states("--deepspeed", str(file))

    assert states("training.optim=sgd") == (0, False)
    assert states("training.optim=sgd", "training.optim_args=momentum=0.9") == (4, False)
    assert states("training.optim=ademamix") == (12, False)
    assert in_json(type="Lion") == (4, False)
    assert in_json(type="SGD", params={"momentum": 0.9}) == (4, False)
    assert in_json(type="RMSprop", params={"momentum": 0.9, "centered": True}) == (12, False)
    assert in_json(type="AdamW") == (8, False)
    assert in_json(type="Adadelta") == (8, True)
    assert states("training.optim=adafactor") == (0, False)
    assert states("training.optim=adafactor", "--deepspeed", "zero1_bf16") == (4, False)  # flat: nothing to factor


def test_8bit_adam_keeps_embeddings_in_fp32_on_disk_too(capsys):
    plan = run_json(capsys, "training.optim=adamw_8bit")
    states = next(part["bytes"] for part in plan["parts"] if part["name"] == "optimizer states")
    assert states >= 2 * plan["trained_parameters"] + 6 * 300 * 64
    assert plan["disk_bytes"]["one checkpoint"] - plan["disk_bytes"]["final"] == states


def test_a_device_without_bfloat16_is_named(capsys):
    def notes(*argv):
        return " ".join(run_json(capsys, "--device", "Tesla T4", *argv)["notes"])

    bf16 = notes("training.bf16=true")
    assert "Tesla T4 has no bfloat16" in bf16
    assert "training.fp16=true" in bf16
    assert "for 'Tesla T4' in" not in bf16
    assert "bfloat16" not in notes("training.bf16=false", "training.fp16=true")
    assert "has no bfloat16" not in " ".join(run_json(capsys, "--device", "24GiB", "training.bf16=true")["notes"])


def test_larger_device_fits_a_larger_micro_batch(capsys):
    small, large = (run_json(capsys, "--device", size)["largest_micro_batch_size"] for size in ("1GiB", "2GiB"))
    assert 1 < small < large


def test_evaluation_stands_beside_training(capsys):
    plan = run_json(capsys, "--per_device_eval_batch_size", "64", "tokenizer.vocab_size=5000", "perf.loss_kernel=plain")
    # 64 rows of 64 tokens, the float32 logits and their log-probabilities; small beside them all else
    head = 64 * 64 * 5000 * 8
    assert plan["evaluation_rows"] == 64
    assert head < plan["evaluation_peak_bytes"] < 2 * head
    assert plan["evaluation_peak_bytes"] > plan["device_peak_bytes"]
    assert run_json(capsys, "training.eval_strategy=no")["evaluation_peak_bytes"] is None
    assert main([*TINY, "--device", "100GB", "--per_device_eval_batch_size", "999999"]) == 0
    assert "evaluation does NOT fit: lower training.per_device_eval_batch_size, now 999999" in capsys.readouterr().out


def test_no_steps_without_max_steps(capsys):
    plan = run_json(capsys, "training.max_steps=-1", "training.num_train_epochs=1")
    assert plan["steps"] is None
    assert plan["total_flops"] is None
    assert any("max_steps" in note for note in plan["notes"])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--device", "H100"], "did you mean 'NVIDIA H100"),
        (["--world_size", "0"], "--world_size = '0'"),
        (["training.learning_rat=1"], "learning_rate"),
    ],
)
def test_errors_are_one_line_with_exit_code_2(capsys, argv, words):
    assert main([*TINY, *argv]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert words in error
    assert "\n" not in error


def test_flags_are_taken_out_wherever_they_stand():
    flags, rest = split_flags(["--config", "x", "--world-size", "4", "--json", "a.b=1", "--device=NVIDIA L4"])
    assert (flags.world_size, flags.device, flags.as_json) == (4, "NVIDIA L4", True)
    assert rest == ["--config", "x", "a.b=1"]
