"""What launchers and shells leave in the environment: taken, or one line that names the variable."""

import pytest

from data_prep.errors import UserError
from training.launch import find_num_threads, read_world, set_environment, set_tracker_environment
from training.launch_variables import check_accelerate

TWO = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "x"}, "RANK = 'x': must be a whole number of at least 0"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE = 'two': must be a whole number of at least 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE = '0'"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE = '-1'"),
        ({"LOCAL_RANK": "a"}, "LOCAL_RANK = 'a'"),
        ({"LOCAL_WORLD_SIZE": "q"}, "LOCAL_WORLD_SIZE = 'q'"),
        ({"MASTER_PORT": "abc"}, "MASTER_PORT = 'abc'"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT = '99999': must be from 1 to 65535"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE = 2, and RANK is not set: start ranks with torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE = 2, and MASTER_ADDR is not set"),
        ({**TWO, "RANK": "5"}, "RANK = 5 with WORLD_SIZE = 2: ranks count from 0"),
    ],
)
def test_variables_of_no_launch(environ, message):
    with pytest.raises(UserError) as error:
        read_world(environ)
    assert str(error.value).startswith("environment: ") and message in str(error.value)


def test_variables_of_a_launch():
    world = read_world(TWO)
    assert (world.rank, world.local_rank, world.size, world.local_size) == (1, 1, 2, 2)
    alone = read_world({"WORLD_SIZE": "", "RANK": " ", "LOCAL_RANK": "-1"})
    assert (alone.rank, alone.local_rank, alone.size) == (0, 0, 1)


def test_empty_variables_are_gone_before_libraries_read_them():
    environ = {"WORLD_SIZE": "", "RANK": "0", "MASTER_PORT": " "}
    set_environment(read_world(environ), 3, environ)
    assert {name: environ.get(name) for name in ("WORLD_SIZE", "RANK", "MASTER_PORT")} == {
        "WORLD_SIZE": None, "RANK": "0", "MASTER_PORT": None,
    }  # fmt: skip
    assert environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(("text", "threads"), [("4", 4), ("4,2", 4), ("abc", None), ("0", None), ("-3", None)])
def test_threads_of_the_environment(text, threads):
    environ = {"OMP_NUM_THREADS": text}
    if threads is None:
        with pytest.raises(UserError, match="OMP_NUM_THREADS"):
            find_num_threads("auto", read_world({}), environ)
    else:
        assert find_num_threads("auto", read_world({}), environ) == threads


@pytest.mark.parametrize(
    ("environ", "arguments", "deepspeed", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, False, "name the JSON with --deepspeed"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, True, None),
        ({"ACCELERATE_USE_FSDP": "true"}, {}, False, "set training.fsdp"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, {"bf16": True}, False, "say 'bf16'"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, {"bf16": False}, False, "say 'no'"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, {"bf16": True}, False, None),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, {"bf16": True}, False, None),
    ],
)
def test_what_accelerate_was_told_agrees_with_the_recipe(environ, arguments, deepspeed, message):
    if message is None:
        check_accelerate(arguments, deepspeed, environ)
    else:
        with pytest.raises(UserError, match=message):
            check_accelerate(arguments, deepspeed, environ)


def test_settings_of_wandb_become_its_variables():
    environ = {"WANDB_ENTITY": "of the shell", "WANDB_MODE": "online"}
    set_tracker_environment({"wandb_entity": None, "wandb_group": "g", "wandb_mode": "offline", "other": "x"}, environ)
    assert environ == {"WANDB_ENTITY": "of the shell", "WANDB_RUN_GROUP": "g", "WANDB_MODE": "offline"}
