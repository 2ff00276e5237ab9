import pytest

from training.metrics import names
from training.reporting.palette import COLOURS, STACKING
from training.reporting.phases import PHASE_MEANINGS, load_phase_times, measured_phases, recorded_phases
from training.reporting.run_reader import load_run

from .conftest import make_records


def test_phases_sum_to_the_step(write_run):
    records = make_records(200)
    times = load_phase_times(load_run(write_run(records)))
    assert times.ms.sum(axis=1) == pytest.approx([record[names.PERF_STEP_MS] for record in records])
    phases = measured_phases(load_run(write_run(records, name="again")))
    assert sum(phase.pct or 0 for phase in phases) == pytest.approx(100)


def test_a_phase_absent_from_a_line_took_no_time_in_it(write_run):
    forward, evaluation = names.phase_key(names.FORWARD), names.phase_key(names.EVAL)
    run = load_run(write_run([{"step": 1, forward: 10.0}, {"step": 2}, {"step": 4, forward: 20.0, evaluation: 6.0}]))
    times = load_phase_times(run)
    assert times.names == (names.FORWARD, names.EVAL)
    assert times.ms.tolist() == [[10.0, 0.0], [20.0, 6.0]]
    by_name = {phase.name: phase.ms for phase in measured_phases(run)}
    assert by_name == pytest.approx({names.FORWARD: (10 + 3 * 20) / 4, names.EVAL: 3 * 6 / 4})


def test_unmeasured_phases_have_no_row(write_run):
    assert measured_phases(load_run(write_run([{"step": 1}]))) == ()
    assert [row.name for row in recorded_phases({names.FORWARD: 1.0, names.EVAL: None}, {})] == [names.FORWARD]


def test_unknown_and_malformed_phases():
    rows = recorded_phases({"zzz": 1.0, names.BACKWARD: 3.0, names.H2D: "fast"}, {})
    assert [(row.name, row.ms, row.pct) for row in rows] == [(names.BACKWARD, 3.0, 75.0), ("zzz", 1.0, 25.0)]


def test_every_phase_has_a_meaning_a_colour_and_a_place():
    assert set(PHASE_MEANINGS) == set(STACKING) == set(names.PHASES)
    assert {f"phase-{phase}" for phase in names.PHASES} <= set(COLOURS)
    lights = [pair[0] for pair in COLOURS.values()]
    assert len(set(lights)) == len(lights)  # charts are recoloured by their light value
