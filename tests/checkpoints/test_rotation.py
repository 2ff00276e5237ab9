"""Rotation removes what may go, and never the only good checkpoint."""

import pytest

from tests.checkpoints.test_quarantine import make_checkpoint
from training.checkpoints.rotation import choose_removals, remove_checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    for step in (5, 10, 15, 20, 100):
        make_checkpoint(path, step)
    return path


def removed(run, *arguments):
    return [path.name.partition("-")[2] for path in choose_removals(run, *arguments)]


def test_the_last_the_best_and_each_nth_stay(run):
    assert removed(run, 2, None) == ["5", "10", "15"]
    assert removed(run, 2, str(run / "checkpoint-10")) == ["5", "15"]
    assert removed(run, 1, None, 10) == ["5", "15"]
    assert removed(run, 2, str(run / "checkpoint-5"), 15) == ["10"]


@pytest.mark.parametrize("limit", [None, 0])
def test_without_a_limit_all_stay(run, limit):
    assert removed(run, limit, None) == []


def test_a_broken_one_takes_no_place_of_a_good_one(tmp_path):
    for step in (5, 10, 15):
        make_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-15" / "latest").unlink()
    assert removed(tmp_path, 1, None) == ["5", "15"]
    (tmp_path / "checkpoint-5" / "manifest.json").unlink()
    (tmp_path / "checkpoint-10" / "manifest.json").write_text("{}")
    assert removed(tmp_path, 1, None) == []  # none is known to be good


def test_abandoned_ones_stay_in_the_places_that_are_left(tmp_path):
    for number in (1, 2):
        make_checkpoint(tmp_path, 30).rename(tmp_path / f"abandoned-checkpoint-30-{number}")
    make_checkpoint(tmp_path, 10)
    assert [path.name for path in choose_removals(tmp_path, 2, None)] == ["abandoned-checkpoint-30-1"]
    make_checkpoint(tmp_path, 20)
    assert len(choose_removals(tmp_path, 2, None)) == 2


def test_a_removed_one_is_gone(tmp_path):
    checkpoint = make_checkpoint(tmp_path, 10)
    remove_checkpoint(tmp_path, checkpoint)
    assert not checkpoint.exists() and not list((tmp_path / ".staging").iterdir())
