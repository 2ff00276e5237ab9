import os
import signal

import pytest

from data_prep.errors import UserError
from data_prep.executor import find_num_processes, run_parts


def square(number: int) -> int:
    if number == 13:
        raise UserError("thirteen")
    if number == 666:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def test_results_come_in_order_from_one_process_or_two():
    for processes in (1, 2):
        assert list(run_parts(square, range(5), processes)) == [0, 1, 4, 9, 16]


def test_errors_and_killed_workers_reach_the_user():
    with pytest.raises(UserError, match="thirteen"):
        list(run_parts(square, [1, 13, 2], 2))
    with pytest.raises(UserError, match="killed"):
        list(run_parts(square, [1, 666, 2], 2))


def test_number_of_processes():
    assert find_num_processes(3) == 3
    assert 1 <= find_num_processes("auto") <= 16
