"""One `train.py` under `python`, `torchrun`, `deepspeed` and `accelerate launch`, on GPUs and on a CPU.

Every launcher says who we are in environment variables; what they leave open on a CPU is settled here:

1. `set_environment` runs before torch is imported: threads per rank, quiet tokenizers.
2. `join_world` runs after: picks the device, tells DeepSpeed its accelerator, and opens the process group itself,
   because `use_cpu` makes `TrainingArguments` forget `ddp_timeout`, and because DeepSpeed at world size 1 would go
   looking for MPI.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sys
import warnings
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from training.launch_variables import check_ranks, drop_empty, read_number, read_threads

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("redline.launch")

# Field of `monitor` -> W&B's own variable. Project and name are fields of `training`.
WANDB_VARIABLES = {"wandb_entity": "WANDB_ENTITY", "wandb_group": "WANDB_RUN_GROUP", "wandb_mode": "WANDB_MODE"}


@dataclass(frozen=True)
class World:
    """Who this process is among the ranks of the run."""

    launcher: str
    rank: int
    local_rank: int
    size: int
    local_size: int

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0


def read_world(environ: Mapping[str, str] = os.environ) -> World:
    """What the launcher said. No launcher: one rank. Raises UserError for variables that no launch can have."""
    size = read_number(environ, "WORLD_SIZE", 1, least=1)
    rank = read_number(environ, "RANK", 0)
    check_ranks(rank, size, environ)
    local_size = read_number(environ, "LOCAL_SIZE", size, least=1)
    return World(
        launcher=_find_launcher(environ),
        rank=rank,
        local_rank=max(0, read_number(environ, "LOCAL_RANK", 0, least=-1)),
        size=size,
        local_size=read_number(environ, "LOCAL_WORLD_SIZE", local_size, least=1),
    )


def _find_launcher(environ: Mapping[str, str]) -> str:
    if "ACCELERATE_MIXED_PRECISION" in environ or "ACCELERATE_DYNAMO_BACKEND" in environ:
        return "accelerate"
    if "TORCHELASTIC_RUN_ID" in environ:
        return "torchrun"
    return "deepspeed" if "CROSS_RANK" in environ else "python"


def find_num_threads(requested: int | str, world: World, environ: Mapping[str, str] = os.environ) -> int:
    """Threads for this rank: the number asked for, else `OMP_NUM_THREADS`, else its share of the physical cores: two
    hyper-threads of one core share the units that multiply.

    torchrun and accelerate set `OMP_NUM_THREADS=1` automatically; that 1 is not taken as the user's choice.
    """
    if requested != "auto":
        return int(requested)
    given = read_threads(environ)
    by_launcher = "TORCHELASTIC_RUN_ID" in environ or "ACCELERATE_MIXED_PRECISION" in environ
    if given and not (given == 1 and by_launcher):
        return given
    return max(1, count_physical_cores() // world.local_size)


def count_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def may_have_gpu(environ: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> bool:
    """Whether this process may see a GPU, by its device files and without torch: NVIDIA's, AMD's, or that of WSL."""
    hidden = (environ.get(name, "0").strip() for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"))
    if any(numbers in ("", "-1") for numbers in hidden):
        return False
    return any(any(devices.glob(pattern)) for pattern in ("nvidia[0-9]*", "kfd", "dxg"))


def count_physical_cores(topology: Path = Path("/sys/devices/system/cpu")) -> int:
    """Cores this process may run on, hyper-threads of one counted once where Linux tells them apart."""
    if not hasattr(os, "sched_getaffinity"):
        return count_cores()
    siblings = set()
    for cpu in os.sched_getaffinity(0):
        try:
            siblings.add((topology / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip())
        except OSError:
            return count_cores()
    return len(siblings)


def set_environment(
    world: World, num_threads: int | str = "auto", environ: MutableMapping[str, str] = os.environ
) -> None:
    """What must stand in the environment before torch is imported."""
    drop_empty(environ)
    threads = str(find_num_threads(num_threads, world, environ))
    environ["OMP_NUM_THREADS"] = environ["MKL_NUM_THREADS"] = threads
    environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # ranks and workers fork after the tokenizer was used


def set_tracker_environment(settings: Mapping[str, str | None], environ: MutableMapping[str, str] = os.environ) -> None:
    """`monitor.wandb_*` as the variables that W&B reads; one that is absent leaves the shell's."""
    for name, variable in WANDB_VARIABLES.items():
        if settings.get(name):
            environ[variable] = str(settings[name])


def leave_out(package: str) -> None:
    """Make `import package` fail in this process, as if it were not installed.

    peft imports bitsandbytes and transformers imports `datasets` wherever they find them, and those import torch's
    compiler and pandas: seconds of a start, for runs that have no use for them.
    """
    sys.modules.setdefault(package, None)  # pyright: ignore[reportArgumentType]  (Python's idiom for this)


def configure_logging(world: World) -> None:
    """Rank 0 speaks on stdout, the others only of warnings; a line is `redline | …`."""
    handler = logging.StreamHandler(sys.stdout)
    prefix = "redline" if world.is_main else f"redline rank {world.rank}"
    handler.setFormatter(logging.Formatter(f"{prefix} | %(message)s"))
    root = logging.getLogger("redline")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(logging.INFO if world.is_main else logging.WARNING)
    # Deprecations inside the libraries are theirs to follow.
    for package in ("transformers", "torch.distributed", "torch.utils.checkpoint", "deepspeed", "accelerate"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=package.replace(".", r"\."))
    # bitsandbytes says at each import that an optional kernel package is missing
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def join_world(
    world: World, *, timeout_seconds: float, use_cpu: bool = False, deepspeed: Mapping[str, Any] | None = None
) -> torch.device:
    """Choose this rank's device and open the process group (if there are several ranks, or DeepSpeed wants one).

    deepspeed: the JSON, None without DeepSpeed. Returns the device: `cuda:LOCAL_RANK` where there is CUDA and `use_cpu`
    is not set, else `cpu`.
    """
    import torch
    import torch.distributed as dist

    uses_deepspeed = deepspeed is not None
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    on_gpu = torch.cuda.is_available() and not use_cpu
    device = torch.device("cuda", world.local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
        if uses_deepspeed:  # `accelerate launch --cpu` sets it, and accelerate then leaves DeepSpeed out without a word
            os.environ.pop("ACCELERATE_USE_CPU", None)
    if deepspeed and "muon" not in str(deepspeed.get("optimizer")).lower():
        _leave_inductor_out()
    if uses_deepspeed and not on_gpu:
        _leave_shared_memory_op_out()
    if (world.size > 1 or uses_deepspeed) and not dist.is_initialized():
        _complete_rendezvous(world)
        try:
            dist.init_process_group(
                "nccl" if on_gpu else "gloo",
                timeout=timedelta(seconds=timeout_seconds),
                device_id=device if on_gpu else None,
            )
        except (RuntimeError, ValueError) as error:  # DistError is a RuntimeError
            place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise UserError(f"the ranks cannot meet at {place}: {str(error).splitlines()[0]}") from error
    if uses_deepspeed:
        _join_deepspeed()
    logger.info(
        "%s: %d rank%s on %s, %d thread%s each",
        world.launcher,
        world.size,
        "s" * (world.size > 1),
        torch.cuda.get_device_name(device) if on_gpu else "CPU",
        torch.get_num_threads(),
        "s" * (torch.get_num_threads() > 1),
    )
    return device


def _complete_rendezvous(world: World) -> None:
    """A lone process has no launcher that names a meeting point: it meets itself on a free port."""
    os.environ.setdefault("RANK", str(world.rank))
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))
    os.environ.setdefault("WORLD_SIZE", str(world.size))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(find_free_port())


def find_free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _leave_inductor_out() -> None:
    """DeepSpeed decorates the functions of its Muon optimizer with `torch.compile` when it is imported, which loads the
    inductor: 1.4 s of a start. Only for runs with another optimizer: undecorated they would be slower."""
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        del os.environ["TORCHDYNAMO_DISABLE"]
        if before is not None:
            os.environ["TORCHDYNAMO_DISABLE"] = before


def _leave_shared_memory_op_out() -> None:
    """DeepSpeed would compile (a minute with g++) an all-reduce that only its inference engine calls.

    It does so as soon as it finds an open process group, at import if need be: hence before there is one.
    """
    # By its full name: the attribute `torch` of the package `deepspeed.comm` is PyTorch.
    backend: Any = importlib.import_module("deepspeed.comm.torch")
    backend.build_shm_op = lambda: None


def _join_deepspeed() -> None:
    """DeepSpeed takes over the open group; `zero.Init` would else believe to be alone."""
    import deepspeed

    deepspeed.comm.init_distributed(verbose=False)


def leave_world() -> None:
    """Close the process group, so that no launcher has to complain of ranks that just went."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
