import pytest

from data_prep.bounded import run_bounded
from data_prep.errors import UserError


def square(number: int) -> int:
    if number == 13:
        raise UserError("thirteen")
    return number * number


class Cluster:
    """An executor that finishes the last submitted part first, and fails as `square` does."""

    def __init__(self):
        self.running: list[int] = []
        self.most = 0

    def submit(self, part: int) -> int:
        self.running.append(part)
        self.most = max(self.most, len(self.running))
        return part

    def find_done(self, tasks: list[int], block: bool) -> list[int]:
        assert sorted(tasks) == sorted(self.running)
        return self.running[-2:] if tasks else []

    def get(self, task: int) -> int:
        self.running.remove(task)
        return square(task)


def test_few_parts_are_under_way_and_a_slow_one_holds_up_no_other():
    cluster = Cluster()
    found = list(run_bounded(cluster.submit, cluster.find_done, cluster.get, range(12), 2))
    assert dict(found) == {i: i * i for i in range(12)}
    assert [index for index, _ in found[-2:]] == [0, 1]
    assert cluster.most == 4


def test_an_error_comes_at_once_but_after_what_is_done():
    cluster = Cluster()
    found = run_bounded(cluster.submit, cluster.find_done, cluster.get, [1, 2, 13, 3, *range(20, 90)], 2)
    assert next(found) == (3, 9)
    with pytest.raises(UserError, match="thirteen"):
        next(found)
    assert cluster.running == [1, 2]
