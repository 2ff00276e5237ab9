import pytest

from training.metrics import names
from training.reporting.bottleneck import LEVERS
from training.reporting.facts import PeakFacts, Roofline, RooflinePhase, RunFacts, facts_from_summary
from training.reporting.limits import PHASE_RULES, find_limits
from training.reporting.phases import PhaseShare
from training.reporting.run_reader import load_run
from training.reporting.summary import Summary

from .conftest import SUMMARY, make_records


def find(run_dir, **facts):
    return {finding.title: finding for finding in find_limits(load_run(run_dir), RunFacts(**facts))}


def shares(**ms):
    total = sum(ms.values())
    return tuple(PhaseShare(name, value, 100 * value / total) for name, value in ms.items())


def test_data_bound_shows_its_arithmetic(write_run):
    findings = find(write_run(), phases=shares(forward=60.0, backward=20.0, data_wait=20.0))
    finding = findings["The loop waits for batches"]
    assert "20.0 ms of 100.0 ms = 20.0 % of the step (limit 10 %)" in finding.arithmetic
    assert "100 / (100 - 20.0) = 1.25 times" in finding.arithmetic
    assert "data.num_workers" in finding.advice


@pytest.mark.parametrize("rule", PHASE_RULES, ids=lambda rule: rule.phase)
def test_each_rule_speaks_past_its_limit_only(write_run, rule):
    below = (PhaseShare(rule.phase, rule.limit_pct, rule.limit_pct),)
    above = (PhaseShare(rule.phase, rule.limit_pct + 1, rule.limit_pct + 1),)
    run_dir = write_run()
    assert rule.title not in find(run_dir, phases=below)
    assert rule.title in find(run_dir, phases=above)


def test_ceiling_is_mfu_over_the_share_of_compute(write_run):
    findings = find(write_run(), phases=shares(forward=30.0, backward=50.0, other=20.0), mfu_pct=40.0)
    assert "40.0 % / 0.800 = 50.0 %" in findings["MFU without any overhead"].arithmetic


def test_padding_recompute_and_memory(write_run):
    records = [
        {
            "step": 10,
            names.PERF_USEFUL_TOKENS_PCT: 50.0,
            names.PERF_MEMORY_PEAK_GIB: 10.0,
            names.PERF_MEMORY_RESERVED_GIB: 20.0,
        }
    ]
    run_dir = write_run(records, env={"gpus": ["H200"]}, config="training:\n  gradient_checkpointing: true  # x\n")
    findings = find(run_dir, mfu_pct=30.0, hfu_pct=40.0)
    assert "2.00 tokens are computed" in findings["Computation on padding"].arithmetic
    recompute = findings["More FLOPs are executed than the model needs"]
    assert (
        "(40.0 - 30.0) / 40.0 = 25 %" in recompute.arithmetic
        and "gradient_checkpointing is true: perf.activation_checkpointing: auto" in recompute.advice
    )
    assert "10.00 GiB (50 %)" in findings["Reserved memory is unused"].arithmetic


def test_checkpointing_is_not_blamed_when_it_is_off(write_run):
    findings = find(write_run(), mfu_pct=30.0, hfu_pct=40.0)
    assert findings["More FLOPs are executed than the model needs"].advice == ""


def test_a_run_of_which_most_is_no_training_says_so_and_what_binds_the_training(write_run):
    forward = RooflinePhase("forward", 30.0, 0.02, 0.1, 15.0, "compute", 50.0)
    backward = RooflinePhase("backward", 19.0, 0.02, 0.1, 9.5, "memory", 50.0)
    facts = RunFacts(
        phases=shares(forward=30.0, backward=19.0, checkpoint=11.0, eval=40.0), step_ms=100.0,
        roofline=Roofline(10.0, None, (forward, backward)), peak=PeakFacts(1.0, "", ""),
    )  # fmt: skip
    rest, training = find_limits(load_run(write_run()), facts)[:2]
    assert rest.title == "The largest part of the step is not training"
    assert rest.arithmetic == "51.0 % of the step (eval 40.0, checkpoint 11.0)."
    assert rest.advice == "Raise training.eval_steps (eval); raise training.save_steps (checkpoint)."
    assert training.title == "The training is compute-bound"
    # 30 / 49 and 19 / 49
    assert training.arithmetic.startswith(
        "Of the 49.0 % of the step that is training: compute 61.2 % (forward 61.2), memory 38.8 % (backward 38.8). "
    )
    assert training.advice == "Measure which settings help:" and training.command.endswith(
        f"/run/config.yaml --levers {LEVERS['compute']}"
    )


def test_nothing_measured_finds_nothing(write_run):
    assert find_limits(load_run(write_run())) == []


def test_a_falling_loss_is_said_and_a_flat_one_is_not(write_run):
    falling = [{"step": step, names.TRAIN_LOSS: 9 - step / 1000} for step in range(10, 3001, 10)]
    finding = find(write_run(falling, name="a"))["The loss is still falling"]
    assert "-1.0000 per 1,000 steps" in finding.arithmetic
    flat = [{"step": step, names.TRAIN_LOSS: 3 + step % 20 / 100} for step in range(10, 3001, 10)]
    assert find(write_run(flat, name="b")) == {}


def test_well_fed_run_has_no_phase_finding(write_run):
    titles = {
        finding.title
        for finding in find_limits(load_run(write_run(make_records())), facts_from_summary(Summary.from_json(SUMMARY)))
    }
    assert titles & {rule.title for rule in PHASE_RULES} == set()
