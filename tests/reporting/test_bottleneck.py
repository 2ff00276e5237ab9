"""The rule that names what binds a run, case by case."""

import pytest

from training.metrics import names
from training.reporting.bottleneck import LEVERS, THINNED_BY, find_bottleneck
from training.reporting.facts import Roofline, RooflinePhase, RunFacts, facts_from_summary
from training.reporting.phases import PhaseShare
from training.reporting.summary import Summary


def roofline(**phases):
    """phase=(ms, least_ms, bound)"""
    found = tuple(
        RooflinePhase(name, ms, 0.0, 0.0, least, bound, 100 * least / ms) for name, (ms, least, bound) in phases.items()
    )
    return Roofline(10.0, 1.0, found)


def facts(rooflines=None, **ms):
    """Phases of a step of 100 ms."""
    assert sum(ms.values()) == pytest.approx(100)
    return RunFacts(
        phases=tuple(PhaseShare(name, value, value) for name, value in ms.items()), roofline=rooflines, step_ms=100.0
    )


NEAR = roofline(forward=(30.0, 15.0, "compute"), backward=(40.0, 20.0, "memory"), optimizer=(10.0, 5.0, "memory"))


@pytest.mark.parametrize(
    ("ms", "kind"),
    [
        ({"data_wait": 40, "h2d": 10, "forward": 30, "backward": 20}, "data"),
        ({"comm_exposed": 51, "forward": 49}, "communication"),
        ({"forward": 60, "backward": 25, "optimizer": 15}, "compute"),
        ({"forward": 45, "backward": 40, "optimizer": 15}, "memory"),
        ({"eval": 40, "checkpoint": 11, "forward": 30, "backward": 19}, "compute"),
        ({"eval": 40, "data_wait": 35, "forward": 25}, "data"),
        ({"eval": 90, "comm_exposed": 7, "forward": 3}, "communication"),
    ],
)
def test_the_largest_kind_binds(ms, kind):
    found = find_bottleneck(facts(NEAR, **ms))
    assert found is not None and found.kind == kind
    assert sum(found.shares.values()) == pytest.approx(100)
    assert found.levers == LEVERS[kind]
    assert found.rest_leads == ("eval" in ms)


def test_where_the_rest_leads_the_shares_are_of_the_training():
    ms = {"forward": 30.0, "backward": 19.0, "checkpoint": 11.0, "eval": 36.0, "logging": 3.0, "other": 1.0}
    found = find_bottleneck(facts(NEAR, **ms))
    assert found is not None
    assert found.describe_rest() == "51.0 % of the step (eval 36.0, checkpoint 11.0, logging 3.0, other 1.0)"
    # a tenth of the rest is 5.1: logging and other are below it
    assert found.thin_rest() == "raise training.eval_steps (eval); raise training.save_steps (checkpoint)"
    assert found.base == "of the 49.0 % of the step that is training"
    # 30 / 49 and 19 / 49
    assert found.describe() == "compute 61.2 % (forward 61.2), memory 38.8 % (backward 38.8)"


def test_every_phase_of_the_rest_has_what_thins_it():
    training = {"data_wait", "h2d", "comm_exposed", "forward", "backward", "optimizer"}
    assert set(THINNED_BY) == set(names.PHASES) - training


def test_without_any_training_nothing_binds_it():
    assert find_bottleneck(facts(NEAR, eval=100.0)) is None
    assert find_bottleneck(facts(NEAR, eval=100.0), idle_launch_ms=5.0) is None


def test_idle_time_includes_the_phases_without_a_roofline():
    beside = roofline(forward=(30.0, 15.0, "compute"))
    found = find_bottleneck(facts(beside, forward=70.0, optimizer=30.0), idle_launch_ms=40.0)
    assert found is not None
    # 30 of the 40 ms are the optimizer, the other 10 are taken from forward
    assert found.shares == pytest.approx({"compute": 60.0, "launch": 40.0})
    assert found.phases["launch"] == (("optimizer", 30.0), ("GPU idle", 10.0))


def test_phases_far_from_both_ceilings_are_launch_bound():
    far = roofline(forward=(30.0, 1.1, "compute"), backward=(40.0, 1.7, "compute"))
    found = find_bottleneck(facts(far, forward=55.0, backward=45.0))
    assert found is not None
    assert (found.kind, found.shares) == ("launch", {"launch": 55.0, "compute": 45.0})


def test_where_the_idle_time_of_the_gpu_is_known_it_is_the_launch_share():
    found = find_bottleneck(facts(NEAR, forward=60.0, backward=20.0, eval=20.0), idle_launch_ms=40.0)
    assert found is not None
    # 40 of 80 ms: compute 60 - 40 x 60/80 = 30, memory 20 - 40 x 20/80 = 10
    assert found.shares == pytest.approx({"launch": 40.0, "compute": 30.0, "the rest": 20.0, "memory": 10.0})


def test_nothing_is_named_without_a_roofline():
    assert find_bottleneck(facts(None, forward=100.0)) is None


def test_a_roofline_is_read_from_a_summary_whatever_is_in_it():
    phase = {"phase": "forward", "ms": 10.0, "tflops": 0.02, "gigabytes": 0.1, "least_ms": 5.0, "bound": "compute",
             "reached_pct": 50.0}  # fmt: skip
    summary = {"roofline": {"gigabytes_per_second": 9.0, "spread_pct": 1, "phases": [phase, {"ms": None}, 3]}}
    found = facts_from_summary(Summary.from_json(summary)).roofline
    assert found is not None and [one.phase for one in found.phases] == ["forward"]
    assert found.phases[0].describe_rate() == "2.00 TFLOP/s"
    for broken in ({}, {"roofline": None}, {"roofline": {"phases": 5}}, {"roofline": {"gigabytes_per_second": 1}}):
        assert facts_from_summary(Summary.from_json(broken)).roofline is None
