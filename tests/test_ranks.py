"""Who does what all ranks need, and how the others hear of it."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from data_prep.errors import UserError
from training.launch import World
from training.ranks import Agreement, on_each_node


@pytest.fixture
def on_two_nodes(monkeypatch):
    """`on_two_nodes(function)`: what `on_each_node` gives or raises on 2 nodes of 2 ranks each; a thread is a rank."""
    gathered, everybody = {}, threading.Barrier(4)

    def gather(outcomes, outcome, group):
        gathered[threading.current_thread().name] = outcome
        everybody.wait(10)
        outcomes[:] = [gathered[f"rank_{rank}"] for rank in range(4)]

    monkeypatch.setattr("torch.distributed.new_group", lambda **kwargs: None)
    monkeypatch.setattr("torch.distributed.all_gather_object", gather)

    def run(rank, function):
        threading.current_thread().name = f"rank_{rank}"
        try:
            return on_each_node(World("torchrun", rank, rank % 2, 4, 2), function)
        except Exception as error:
            return error

    def start(function):
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(run, range(4), [function] * 4))

    return start


def test_one_rank_of_each_node_prepares_and_the_others_get_its_result(on_two_nodes):
    called = []

    def prepare():
        called.append(threading.current_thread().name)
        return f"made by {called[-1]}"

    assert on_two_nodes(prepare) == ["made by rank_0", "made by rank_0", "made by rank_2", "made by rank_2"]
    assert sorted(called) == ["rank_0", "rank_2"]


def test_all_ranks_hear_of_an_error_on_any_node(on_two_nodes):
    def prepare():
        if threading.current_thread().name == "rank_2":
            raise UserError("line 5 is bad")
        return "made"

    assert [str(found) for found in on_two_nodes(prepare)] == ["line 5 is bad"] * 4


def test_one_rank_agrees_with_itself_once():
    agreement = Agreement(timeout_seconds=5)
    agreement.post(143)
    assert (agreement.read(), agreement.read()) == (143, 0)
