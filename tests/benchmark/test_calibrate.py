"""Two runs of one configuration come out as different at most 5 times in 100, on every kind of machine."""

import pytest

from tests.comparing.conftest import write_timed  # noqa: F401
from training.benchmark.calibrate import MACHINES, SEEDS, count_false_alarms, main, simulate, simulate_losses
from training.comparing.sides import load_side


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("windows", [30, 100])
def test_single_runs_raise_few_false_alarms(name, windows):
    assert simulate(MACHINES[name], windows, repeats=1, pairs=200).false_alarms <= 0.05


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("repeats", [3, 6])
def test_repeats_raise_few_false_alarms(name, repeats):
    assert simulate(MACHINES[name], 30, repeats, pairs=200).false_alarms <= 0.05


@pytest.mark.parametrize("kind", SEEDS)
@pytest.mark.parametrize(("repeats", "records"), [(1, 100), (1, 1000), (3, 100)])
def test_losses_of_other_seeds_raise_few_false_alarms(kind, repeats, records):
    cell = simulate_losses(kind, records, repeats, pairs=150)
    assert cell.false_alarms <= 0.05
    assert cell.shown > 0 and cell.found < 1


def test_power_grows_with_windows_and_with_repeats():
    independent = MACHINES["independent"]
    found = [simulate(independent, windows, 1, 60).found for windows in (30, 100, 1000)]
    assert found[0] > 1.5 * found[1] > 1.5 * found[2]
    assert found[2] < 0.06
    assert simulate(independent, 100, 6, 60).found < found[1] / 2


def test_pairs_of_real_runs_are_counted(write_timed, capsys, tmp_path):  # noqa: F811
    paths = [write_timed(f"runs/{seed}", seed=seed, steps=200, slower=1 + (seed == 2)) for seed in range(3)]
    assert main(["--runs", str(paths[0].parent), "--output", str(tmp_path / "page.md")]) == 0
    page = (tmp_path / "page.md").read_text()
    assert page in capsys.readouterr().out
    assert "2 of 3 pairs show a difference in any row." in page
    assert "\n- 0 and 2: " in page and "perf/forward_ms" in page and "\n| 0 | 200 | " in page
    spread = float(page.split("\n| perf/forward_ms | ")[1].split("%")[0])
    assert spread == pytest.approx(43.3, abs=1.5)  # of 1, 1 and 2: 0.577 / 1.333
    assert main(["--runs", str(paths[0] / "nothing")]) == 2
    assert main(["--runs", str(paths[0])]) == 2
    assert "one run has nothing to be compared with" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--pairs", "0"])


def test_false_alarms_of_whole_comparisons(write_timed):  # noqa: F811
    """All rows of a page together, over every pair of 9 runs: at most 5 in 100 pages may name any difference."""
    paths = [write_timed(f"runs/{seed}", seed=seed, steps=400) for seed in range(9)]
    number, alarms = count_false_alarms(load_side("A", [paths[0].parent]))
    assert number == 36
    assert len(alarms) <= 2, alarms
