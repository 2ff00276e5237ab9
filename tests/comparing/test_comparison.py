"""Whole comparisons of synthetic runs: verdicts, levels, JSON."""

import json
from dataclasses import replace

import pytest

from tests.reporting.conftest import CONFIG, ENV, make_records, to_lines
from training.comparing.comparison import compare, is_phase
from training.comparing.intervals import Interval
from training.comparing.page import describe_verdict, format_page, judge
from training.comparing.sides import SPEED, STEP_WITHOUT_PERIODIC, find_windows, load_side
from training.metrics import names


def compare_paths(*paths, **options):
    return compare([load_side(letter, [path]) for letter, path in zip("ABC", paths, strict=False)], **options)


def write_repeats(write_timed, name, seeds, **options):
    return load_side(name, [write_timed(f"{name}/{seed}", seed=seed, **options) for seed in seeds])


def bounds(interval: Interval) -> tuple[float, float]:
    assert interval.low is not None and interval.high is not None
    return interval.low, interval.high


def test_one_configuration_twice_is_no_difference(write_timed):
    sides = write_repeats(write_timed, "A", range(4)), write_repeats(write_timed, "B", range(4, 8))
    pair = compare(sides).pairs[0]
    assert len(pair.rows) > 15
    assert not [row.key for row in pair.rows if row.interval.differs]
    assert not [loss for loss in pair.losses if loss.interval and loss.interval.differs]
    assert pair.settings == ()


def test_a_slower_side_is_found_with_its_size(write_timed):
    """The interval of the steps between checkpoints is narrow; `perf/step_ms` has evaluations in it."""
    sides = write_repeats(write_timed, "A", range(4)), write_repeats(write_timed, "B", range(4, 8), slower=1.2)
    pair = compare(sides).pairs[0]
    work = pair.find(STEP_WITHOUT_PERIODIC)
    assert work and work.interval.differs
    low, high = bounds(work.interval)
    assert low < 1.2 < high and low > 1.15
    rate = pair.find(names.PERF_TOKENS_PER_SECOND)
    assert rate and rate.interval.estimate == pytest.approx(1 / 1.2, rel=0.02)


def test_a_better_loss_is_found_and_equal_losses_are_said_to_be_equal(write_timed):
    equal = compare_paths(write_timed("a"), write_timed("b", slower=1.01)).pairs[0]
    assert [(loss.key, loss.axis, loss.equal) for loss in equal.losses] == [
        (names.TRAIN_LOSS, "tokens", True), (names.TRAIN_LOSS, "time_s", False), (names.EVAL_LOSS, "tokens", True),
    ]  # fmt: skip
    sides = write_repeats(write_timed, "C", range(4)), write_repeats(write_timed, "D", range(4, 8), loss=-0.3)
    loss = compare(sides).pairs[0].losses[0]
    assert not loss.equal and loss.interval and loss.interval.differs
    low, high = bounds(loss.interval)
    assert low < -0.3 < high < -0.2


def test_single_runs_show_their_ratio_and_the_command_that_makes_repeats(write_timed):
    a, b = write_timed("a"), write_timed("b", seed=1, slower=1.2)
    command = "training/train.py --local_rank=0 --config X --output_dir runs/b training.optim=sgd --resume auto"
    (b / "env.json").write_text(json.dumps({**ENV, "command": command}))
    comparison = compare_paths(a, b)
    row = comparison.pairs[0].find(names.PERF_STEP_MS)
    assert row and row.interval.estimate == pytest.approx(1.2, rel=0.02) and row.interval.low is None
    assert judge(row, "B") == "needs repeats for an interval"
    (note,) = [note for note in comparison.notes if "one run" in note]
    assert '--a "--config minigpt_quickstart" --b "--config X training.optim=sgd" --repeat 4' in note
    assert "python -m training.benchmark compare --a " in note


def test_windows_are_weighted_so_that_a_mean_is_total_over_total(write_timed):
    run = load_side("A", [write_timed("a")]).runs[0]
    records = [record for record in make_records(600, 5, 0) if record["step"] >= 65]  # the first tenth is left out
    seconds = sum(5 * record[names.PERF_STEP_MS] / 1000 for record in records)
    rate, step = (find_windows(run, key) for key in (names.PERF_TOKENS_PER_SECOND, names.PERF_STEP_MS))
    assert rate and step
    assert rate.mean() == pytest.approx(5 * 4096 * len(records) / seconds)
    assert step.mean() == pytest.approx(1000 * seconds / (5 * len(records)))
    less = find_windows(run, STEP_WITHOUT_PERIODIC)
    periodic = [names.phase_key(phase) for phase in (names.CHECKPOINT, names.EVAL, names.LOGGING)]
    assert less and less.values[0] == records[0][names.PERF_STEP_MS] - sum(records[0][key] for key in periodic)
    peak = find_windows(run, names.PERF_MEMORY_PEAK_GIB)
    assert peak and peak.values.tolist() == [1.87]


def test_the_first_steps_after_a_resume_are_left_out(write_timed):
    path = write_timed("a")
    (path / "events.jsonl").write_text('{"kind": "resume", "step": 300}\n')
    windows = find_windows(load_side("A", [path]).runs[0], names.PERF_STEP_MS)
    all_windows = find_windows(load_side("A", [write_timed("b")]).runs[0], names.PERF_STEP_MS)
    assert windows and all_windows
    assert len(windows.values) == len(all_windows.values) - 1


def test_settings_that_differ_are_named_with_their_origins(write_timed):
    other = CONFIG.replace("0.001  # configs/minigpt_quickstart.yaml:9", "0.002  # command line")
    comparison = compare_paths(write_timed("a"), write_timed("b", seed=1, config=other))
    (difference,) = comparison.pairs[0].settings
    assert (difference.key, str(difference.a), str(difference.b)) == (
        "training.learning_rate", "0.001 (configs/minigpt_quickstart.yaml:9)", "0.002 (command line)",
    )  # fmt: skip
    paths = [side.runs[0].path for side in comparison.sides]
    mixed = compare([load_side("A", paths), load_side("B", [write_timed("c", seed=2)])])
    assert any("A mixes configurations" in note and "training.learning_rate" in note for note in mixed.notes)


def test_json_has_no_nan_and_the_page_says_one_run(write_timed):
    comparison = compare_paths(write_timed("a"), write_timed("b", seed=1))
    data = json.loads(json.dumps(comparison.as_json(), allow_nan=False))
    rows = {row["key"]: row for row in data["pairs"][0]["metrics"]}
    assert rows["perf/cache_clear_ms"]["interval"]["estimate"] is None  # 0 against 0
    assert rows[names.PERF_STEP_MS]["differs"] is None
    page = format_page(comparison)
    assert "ratios have no interval" in page
    assert rows[names.PERF_MEMORY_PEAK_GIB]["equal"] and rows[names.PERF_MEMORY_ALLOCATED_GIB]["differs"] is None
    assert page.count("needs repeats for an interval") > 10
    assert len({len(line) for line in page.split("### Phases")[0].splitlines() if line.startswith("|")}) == 1


def test_periodic_phases_are_means_over_all_counted_steps(write_timed):
    """An evaluation in each tenth step: most records have no such key, and a missing one took no time."""
    paths = [write_timed(name, seed=seed, steps=400) for seed, name in enumerate("ab")]
    pair = compare_paths(*paths).pairs[0]
    for row, path in ((pair.a, paths[0]), (pair.b, paths[1])):
        assert row.runs[0].path == path
    lines = [json.loads(line) for line in (paths[0] / "metrics.jsonl").read_text().splitlines()]
    for phase in (names.EVAL, names.CHECKPOINT):
        key, found = names.phase_key(phase), pair.find(names.phase_key(phase))
        counted = [line.get(key, 0.0) for line in lines if names.PERF_STEP_MS in line and line["step"] > 40]
        assert found is not None and found.a == pytest.approx(sum(counted) / len(counted)) and found.a > 0


def test_losses_of_repeats_under_one_seed_are_one_run(write_timed):
    """They are equal to the last digit: a spread of 0 would call a thousandth of a nat a difference."""
    a, b = ([write_timed(f"{side}/{n}", seed=3, loss=0.001 * (side == "b")) for n in range(3)] for side in "ab")
    for paired in (False, True):
        pair = compare([load_side("A", a), load_side("B", b)], paired=paired).pairs[0]
        loss = next(loss for loss in pair.losses if loss.axis == "tokens")
        assert loss.interval and loss.interval.differs is None and loss.interval.estimate == pytest.approx(0.001)


def change_records(run, change):
    """Every record of a step, as `change` leaves it."""
    path = run / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        if names.PERF_STEP_MS in record:
            change(record)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return run


def test_a_phase_that_one_side_alone_has_counts(write_timed):
    waiting, evaluation = names.phase_key(names.COMM_EXPOSED), names.phase_key(names.EVAL)

    def wait(record):
        record[waiting] = 100.0
        record[names.PERF_STEP_MS] += 100.0

    def leave_out(record):
        record[names.PERF_STEP_MS] -= record.pop(evaluation, 0.0)

    a = change_records(write_timed("a", seed=1), leave_out)
    b = change_records(write_timed("b", seed=2), wait)
    comparison = compare_paths(a, b)
    [pair] = comparison.pairs
    rows = {row.key: row for row in pair.rows}
    assert (rows[waiting].a, rows[waiting].b, rows[evaluation].a) == (0.0, 100.0, 0.0)
    for side in ("a", "b"):
        phases = sum(getattr(row, side) for row in pair.rows if is_phase(row))
        assert phases == pytest.approx(getattr(rows[names.PERF_STEP_MS], side), rel=1e-6)
    page = format_page(comparison)
    [line] = [line for line in page.splitlines() if line.startswith(f"| {waiting}")]
    share = 100 * 100.0 / rows[names.PERF_STEP_MS].b
    assert "0 (0.0 %)" in line and f"100 ({share:.1f} %)" in line and "in B only" in line
    assert f"{waiting} in B only" in describe_verdict(pair)[-1]
    reverse = format_page(compare_paths(b, a))
    assert f"{waiting} not in B" in reverse


def test_steps_alone_are_without_what_one_rank_does_while_others_wait(write_timed):
    def draw(record):
        logging = record[names.phase_key(names.LOGGING)]
        record[names.phase_key(names.LOGGING)] = logging + 50.0  # 100 on rank 0, 0 on the other, which waits
        record[names.spread_key(names.LOGGING, "max")] = logging + 100.0
        record[names.phase_key(names.COMM_EXPOSED)] = 50.0
        record[names.PERF_STEP_MS] += 100.0

    quiet = find_windows(load_side("A", [write_timed("a")]).runs[0], STEP_WITHOUT_PERIODIC)
    drawn = find_windows(load_side("B", [change_records(write_timed("b"), draw)]).runs[0], STEP_WITHOUT_PERIODIC)
    assert quiet and drawn and drawn.mean() == pytest.approx(quiet.mean(), abs=0.01)


def test_rows_that_tell_nothing_are_no_missing_difference(write_timed):
    pair = compare_paths(write_timed("a", seed=1), write_timed("b", seed=2)).pairs[0]
    rows = tuple(row for row in pair.rows if not row.equal)
    assert describe_verdict(replace(pair, rows=rows))[-1] == "everything else: needs repeats for an interval"
    others = [row for row in pair.rows if row.key not in SPEED]  # of memory the peak is equal
    unknown = sum(not row.equal for row in others)
    assert describe_verdict(pair)[-1] == (
        f"everything else: no difference ({unknown} of {len(others)} rows: needs repeats for an interval)"
    )
    sides = write_repeats(write_timed, "C", range(3)), write_repeats(write_timed, "D", range(3, 6))
    repeated = compare(sides).pairs[0]
    others = [row for row in repeated.rows if row.key not in SPEED]
    unknown = sum(judge(row, "B").startswith(("inconclusive", "needs repeats")) for row in others)
    assert describe_verdict(repeated)[-1] == (
        f"everything else: no difference ({unknown} of {len(others)} rows: inconclusive)"
        if unknown
        else "everything else: no difference"
    )


def test_where_no_speed_is_compared_the_page_says_why(write_timed):
    short, untimed, timed = write_timed("short", steps=5), write_timed("untimed", seed=1), write_timed("timed", seed=2)
    lines = [json.loads(line) for line in (untimed / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in line.items() if not key.startswith("perf/")} for line in lines]
    (untimed / "metrics.jsonl").write_text(to_lines(kept))
    page = format_page(compare_paths(untimed, timed))
    assert (
        "- speed: inconclusive: A has no perf/step_ms (perf.enabled: false?)\n" in page
        and "detectable | verdict" not in page
    )
    first = compare_paths(timed, short)
    assert describe_verdict(first.pairs[0])[0] == "speed: inconclusive: B has no record after its first steps"
