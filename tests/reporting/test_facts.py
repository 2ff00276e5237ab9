import math

import pytest

from training.metrics import names
from training.reporting.facts import PeakFacts, RunFacts, facts_from_run, facts_from_summary
from training.reporting.run_reader import load_run
from training.reporting.summary import Summary

from .conftest import SUMMARY, make_records


def test_summary_is_taken_as_it_is(full_run):
    facts = facts_from_run(load_run(full_run))
    assert facts.source == "summary.json" and facts.status == "finished"
    assert (facts.mfu_pct, facts.loss_last, facts.tokens_per_second) == (41.3, 3.41, 12_850.0)
    assert facts.is_below_unigram and "2.821 nats below" in facts.entropy_sentence()


def test_an_unfinished_run_is_told_from_its_metrics(write_run):
    records = make_records(600)
    facts = facts_from_run(load_run(write_run(records)))
    assert facts.source == "metrics.jsonl" and facts.status == "unfinished" and facts.steps == 600
    assert facts.loss_first == pytest.approx(records[0][names.TRAIN_LOSS])
    seconds = sum(record[names.PERF_STEP_MS] for record in records) * 10 / 1000
    assert facts.tokens_per_second == pytest.approx(600 * 4096 / seconds)
    assert sum(phase.ms or 0 for phase in facts.phases) == pytest.approx(facts.step_ms)


def test_a_failed_summary_is_filled_from_the_metrics(write_run):
    run = load_run(write_run(make_records(50), {"status": "failed", "error": "OutOfMemoryError: no room"}))
    facts = facts_from_run(run)
    assert facts.status == "failed" and facts.error == "OutOfMemoryError: no room" and facts.loss_last is not None


@pytest.mark.parametrize("broken", [{}, {key: "text" for key in SUMMARY}, {key: [None] for key in SUMMARY}])
def test_wrong_types_are_not_measured(broken):
    facts = facts_from_summary(Summary.from_json({**broken, "steps": True, "mfu_pct": math.nan}))
    assert facts.steps is None and facts.mfu_pct is None and facts.phases == () and facts.peak is None


def test_entropy_sentences():
    assert "not measured" in RunFacts().entropy_sentence()
    assert "not measured" in RunFacts(eval_loss_last=3.0).entropy_sentence()
    above = RunFacts(eval_loss_last=7.0, unigram_entropy_nats=6.5)
    assert above.is_below_unigram is False and "not below" in above.entropy_sentence()
    assert RunFacts(eval_loss_last=3.0).is_below_unigram is None


def test_peak_says_what_it_is():
    assert (
        PeakFacts(989.0, "NVIDIA H200", "vendor, dense bf16").describe()
        == "989 TFLOP/s of NVIDIA H200, vendor, dense bf16"
    )
    measured = PeakFacts(0.5, "CPU", "measured", spread_pct=12.4)
    assert measured.describe() == "0.5 TFLOP/s of CPU, measured, spread 12 %"
    assert "unknown" in PeakFacts(None, "CPU", "").describe()


def test_what_a_finished_run_did_not_measure_is_not_made_up_from_its_first_steps(write_run):
    unmeasured = {"tokens_per_second": None, "mfu_pct": None, "phases_ms": {}, "phases_pct": {}, "step_ms": None}
    facts = facts_from_run(load_run(write_run(make_records(50), {**SUMMARY, **unmeasured})))
    assert (facts.tokens_per_second, facts.mfu_pct, facts.phases, facts.steps) == (None, None, (), 600)


def test_no_share_of_a_ceiling_that_the_run_exceeded():
    peak = {"tflops": 2.0, "source": "measured", "device": "cpu"}
    reached = facts_from_summary(Summary.from_json({"mfu_pct": 10.0, "peak": peak, "ceiling": {**peak, "tflops": 0.5}}))
    assert reached.ceiling_sentence() == "40.0 % of the 0.5 TFLOP/s that its matmuls reach on their own"
    slow = Summary(mfu_pct=10.0, peak=peak, ceiling={**peak, "tflops": 0.1})
    assert not facts_from_summary(slow).ceiling_sentence()
