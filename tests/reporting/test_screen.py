import shlex

from training.metrics import names
from training.reporting.bottleneck import LEVERS
from training.reporting.screen import format_phase_table, format_summary
from training.reporting.summary import Summary

from .conftest import PHASES_MS, SUMMARY

REACHED = {"ms": 20.0, "tflops": 0.02, "gigabytes": 0.1, "least_ms": 10.0, "reached_pct": 50.0}
ROOFLINE = {
    "gigabytes_per_second": 9.0,
    "phases": [
        {**REACHED, "phase": "forward", "bound": "compute"},
        {**REACHED, "phase": "backward", "bound": "memory"},
    ],
}


def test_phase_table_is_ascii_complete_and_narrow():
    table = format_phase_table(Summary.from_json(SUMMARY))
    assert table.isascii() and max(map(len, table.splitlines())) <= 100
    for phase, ms in PHASES_MS.items():
        row = next(line for line in table.splitlines() if line.split()[1:2] == [phase])
        assert f"{ms:,.2f}" in row
    assert "315.00" in table.splitlines()[-2] and "100.0" in table.splitlines()[-2]


def test_bars_are_proportional():
    table = format_phase_table(
        Summary.from_json({"phases_ms": {names.FORWARD: 50.0, names.BACKWARD: 25.0, names.OTHER: 25.0}})
    )
    counts = {line.split()[1]: line.count("#") for line in table.splitlines() if "#" in line}
    assert counts == {names.FORWARD: 10, names.BACKWARD: 5, names.OTHER: 5}


def test_summary_holds_what_the_quickstart_promises():
    text = format_summary(Summary.from_json(SUMMARY), "runs/minigpt_quickstart")
    for part in (
        "minigpt_quickstart: finished, 600 steps", "12,850", "41.3 % of 1.62 TFLOP/s of AMD EPYC, 2 cores",
        "9.0200 -> 3.4100", "3.6100 (unigram entropy 6.4310)", "2.821 nats below", "def read(self, n=-1):",
        "runs/minigpt_quickstart/report.html",
    ):  # fmt: skip
        assert part in " ".join(text.split()), part
    assert max(map(len, text.splitlines())) <= 100


def test_missing_values_are_not_measured_never_zero():
    text = format_summary(Summary.from_json({}), "runs/x")
    assert text.count("not measured") >= 8 and "0" not in text
    assert "not measured" in format_phase_table(Summary.from_json({}))


def test_samples_cannot_steer_the_terminal_or_the_layout():
    sample = {"prompt": "[red]a[/red]", "text": "\x1b[2J" + "x" * 300 + "\tend\r\n\n  indented"}
    text = format_summary(Summary.from_json({**SUMMARY, "sample": sample}), "runs/x")
    assert "\x1b" not in text and "\r" not in text and "[red]a[/red]\\x1b[2J" in text
    assert "  |   indented" in text and max(map(len, text.splitlines())) <= 100


def test_long_paths_stay_whole():
    path = "/a/" + "long/" * 40 + "run"
    assert f"{path}/report.html" in format_summary(Summary.from_json(SUMMARY), path)


def test_a_run_of_which_most_is_no_training_names_what_binds_the_training():
    phases = {names.FORWARD: 30.0, names.BACKWARD: 19.0, names.CHECKPOINT: 11.0, names.EVAL: 40.0}
    text = format_summary(Summary(phases_ms=phases, step_ms=100.0, roofline=ROOFLINE), "runs/x")
    flat = " ".join(text.split())
    assert "not training 51.0 % of the step (eval 40.0, checkpoint 11.0); raise training.eval_steps (eval); " in flat
    # 30 / 49 and 19 / 49
    assert (
        "bottleneck of the 49.0 % of the step that is training: compute 61.2 % (forward 61.2), memory 38.8 % "
        "(backward 38.8) try python -m training.benchmark advise --config runs/x/config.yaml \\ --levers precision,"
        in flat
    )
    assert text.isascii() and max(map(len, text.splitlines())) <= 100


def test_the_screen_names_the_kind_of_the_report_when_a_trace_saw_the_gpu_idle(write_run):
    run_dir = write_run([{"step": 5, names.PERF_GPU_IDLE_LAUNCH_MS: 60.0}])
    phases = {names.FORWARD: 60.0, names.BACKWARD: 40.0}
    text = format_summary(Summary(phases_ms=phases, step_ms=100.0, roofline=ROOFLINE), run_dir)
    # compute 60 - 60 x 60/100 = 24, memory 40 - 60 x 40/100 = 16
    assert "bottleneck    launch 60.0 % (GPU idle 60.0), compute 24.0 % (forward 24.0)" in text


def test_what_binds_the_training_comes_with_its_levers():
    phases = {names.FORWARD: 60.0, names.BACKWARD: 40.0}
    flat = " ".join(format_summary(Summary(phases_ms=phases, step_ms=100.0, roofline=ROOFLINE), "runs/x").split())
    assert "bottleneck compute 60.0 % (forward 60.0), memory 40.0 % (backward 40.0) try" in flat


def test_the_advice_is_one_command_of_a_shell(tmp_path):
    run_dir = tmp_path / "my run"
    run_dir.mkdir()
    (run_dir / "env.json").write_text('{"world_size": 2, "launcher": "torchrun"}')
    phases = {names.FORWARD: 60.0, names.BACKWARD: 40.0}
    text = format_summary(Summary(phases_ms=phases, step_ms=100.0, roofline=ROOFLINE), run_dir)
    command = text[text.index("python -m") : text.index("peak memory")]
    assert shlex.split(command.replace("\\\n", " ")) == [
        "python", "-m", "training.benchmark", "advise", "--config", f"{run_dir}/config.yaml",
        "--launcher", "torchrun --nproc_per_node=2", "--levers", LEVERS["compute"],
    ]  # fmt: skip
