"""A store built on two Ray nodes (two raylets on loopback) is the one that processes build, also when a worker dies.

Needs requirements-ray.txt and half a minute: `make test-faults`.
"""

import os
import signal
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.ray_executor import run_on_ray
from data_prep.store import assembly, build
from data_prep.store.store import Store
from tests.data_prep.conftest import (
    hash_shards,
    make_texts,
    prepare_store,
    recipe,
    small_parts,
    tokenizer_dir,
    write_jsonl,
)

ray = pytest.importorskip("ray", reason="ray is not installed: pip install -r requirements-ray.txt")
__all__ = ["recipe", "small_parts", "tokenizer_dir"]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster of two nodes with one CPU each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster_utils = import_module("ray.cluster_utils")
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in make_texts(400)])


def where(_: int) -> tuple[str, int]:
    time.sleep(0.2)
    return ray.get_runtime_context().get_node_id(), os.getpid()


def kill_worker(part, spec):
    """Builds a part; the worker that is given the fourth for the first time is killed."""
    mark = spec.directory / "killed"
    if part.index == 3 and not mark.exists():
        mark.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return build.build_part(part, spec)


def fail(number: int) -> int:
    raise UserError(f"no {number}")


def test_both_nodes_work(address: str):
    places = [place for _, place in run_on_ray(where, range(12), address)]
    assert len({node for node, _ in places}) == 2
    assert os.getpid() not in {pid for _, pid in places}


def test_nothing_is_reported(address: str):
    usage_lib = import_module("ray._common.usage.usage_lib")
    assert not usage_lib.usage_stats_enabled()


@pytest.mark.parametrize("killed", [False, True])
def test_the_store_is_that_of_processes(address: str, source, recipe, small_parts, tmp_path, killed: bool):
    on_ray = {"executor": "ray", "ray_address": address, "store_dir": str(tmp_path / "ray")}
    with pytest.MonkeyPatch.context() as patch:
        if killed:
            patch.setattr(assembly, "build_part", kill_worker)
        found = prepare_store(*recipe(source, on_ray))
    assert (found / "killed").exists() == killed
    expected = prepare_store(*recipe(source, {"num_proc": 2}))
    assert len(Store.open(found).manifest.shards) > 10
    assert hash_shards(found) == hash_shards(expected)
    assert found.name == expected.name


def test_errors_reach_the_user_as_they_are(address: str):
    with pytest.raises(UserError, match=r"^no 0$"):
        list(run_on_ray(fail, [0], address))


def test_no_cluster_is_one_line():
    ray.shutdown()
    with pytest.raises(UserError, match=r"data\.ray_address: no Ray cluster at 127\.0\.0\.1:1 "):
        list(run_on_ray(fail, [0], "127.0.0.1:1"))
