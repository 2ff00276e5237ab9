"""Train a model: parse, prepare, build, train, report.

    python training/train.py --config minigpt_quickstart
    torchrun --nproc_per_node=2 training/train.py --config configs/qwen2_tiny_pretrain.yaml --max_steps 100
    deepspeed --num_gpus 8 training/train.py --config qwen2.5_0.5b_pretrain --deepspeed ds_configs/zero2_bf16.json
    accelerate launch --multi_gpu --num_processes 2 training/train.py --config debug      (so on a CPU, too)

`--config` takes a path or a bare name in `configs/`; any key of any section can be overridden (`--learning_rate 1e-4`,
`data.seq_len=1024`); `--resume auto|PATH|never` resumes from the latest complete checkpoint or
from PATH, or starts from scratch. Exit codes: 0 trained, 2 user error in the recipe, the data or the machine (one line
says what to do), 130, 143 or 129 stopped by SIGINT (Ctrl-C), SIGTERM or SIGHUP (docs/stopping.md).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.run.session import Finish

if __package__ in (None, ""):  # run as a script: its folder is on the path, the project's root is not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_prep.command import describe_missing, describe_refusal, run_command
from data_prep.errors import UserError
from data_prep.options import HUB_PREFIX
from training.allocator import use_allocator
from training.compiling.cache import set_cache_environment
from training.config import Config, LoadedConfig, load_config
from training.config.trackers import check_trackers
from training.launch import (
    World,
    configure_logging,
    find_num_threads,
    leave_out,
    may_have_gpu,
    read_world,
    set_environment,
    set_tracker_environment,
)
from training.launch_variables import check_accelerate
from training.launcher_watch import Launcher, LauncherWatch
from training.optim.choose import list_unneeded_imports
from training.outcomes import RankEnd, describe_error, tell
from training.run_place import check_place
from training.stop_signals import Stopped, StopSignals, end_process

logger = logging.getLogger("redline.train")


def main(argv: Sequence[str] | None = None, finish: Finish | None = None) -> int:
    """Run one training; the exit code.

    argv: None: those of this process, which is a program that trains and does nothing else, and which may restart
    with another memory allocator (`training.allocator`). finish: what comes after the last step, instead of `final/`
    and the report.
    """
    with StopSignals() as signals:
        return _train_as_told(argv, finish, signals)


def _train_as_told(argv: Sequence[str] | None, finish: Finish | None, signals: StopSignals) -> int:
    world, loaded = World("python", 0, 0, 1, 1), None
    try:
        world = read_world()
        tell({"rank": world.rank, "pid": os.getpid()})
        with LauncherWatch(Launcher.find(world), signals.lose_launcher):
            loaded = load_config(sys.argv[1:] if argv is None else argv, world.size)
            signals.exit_code = loaded.config.checkpoint.stop_exit_code
            train(loaded, world, finish, signals, is_program=argv is None)
    except Stopped as stopped:
        tell(vars(RankEnd(world.rank, stopped.exit_code, str(stopped), True, signals.is_orphan)))
        if world.is_main:
            print(f"{stopped}: --resume auto resumes from the latest checkpoint", file=sys.stderr)
        if argv is None:  # all is closed, and taking the interpreter apart takes seconds that a launcher may not wait
            sys.stdout.flush()
            end_process(stopped.exit_code)
        return stopped.exit_code
    except Exception as error:
        refusal = _find_refusal(error, loaded)
        if refusal is None:
            tell(vars(RankEnd(world.rank, 1, describe_error(error))))
            raise
        return _refuse(world, refusal)
    except KeyboardInterrupt:
        print("error: stopped by Ctrl-C; --resume auto resumes from the latest checkpoint", file=sys.stderr)
        return 130
    tell(vars(RankEnd(world.rank, 0, "")))
    return 0


def train(
    loaded: LoadedConfig, world: World, finish: Finish | None, signals: StopSignals, *, is_program: bool = False
) -> None:
    """Check and prepare what can be without torch, then train. Raises UserError for what the user can correct.

    signals: what a signal asks for. is_program: whether this process may restart with another memory allocator.
    """
    config = loaded.config
    check_accelerate(config.arguments(), loaded.deepspeed is not None)
    if world.is_main:
        check_place(Path(config.training["output_dir"]), find_needed(config))
    find_num_threads(config.perf.num_threads, world)  # refuses a wrong OMP_NUM_THREADS before a word is said
    configure_logging(world)
    # Before anything else is said or set, because the process may restart here.
    on_cpu = bool(config.argument("use_cpu")) or not may_have_gpu()
    use_allocator(config.perf.allocator, on_cpu=on_cpu, is_program=is_program)
    set_environment(world, config.perf.num_threads)
    set_tracker_environment(config.monitor.model_dump())
    if config.perf.compile in ("blocks", "model") or config.training.get("torch_compile"):
        set_cache_environment(config.perf.compile_cache_dir)
    for note in loaded.notes:
        logger.info("%s", note)
    leave_out_unneeded(config)
    if world.is_main:  # alone among the ranks it has trackers
        check_trackers(config.training)
    # torch comes in here, after everything that can fail without it; a wrong model is found before data is prepared
    import torch

    from training.compiling.install import check_compile
    from training.loss.choose import check_loss
    from training.loss.terms import find_terms
    from training.models.build import check_model

    on_cpu = bool(config.argument("use_cpu")) or not torch.cuda.is_available()
    check_model(config.model, config.data.seq_len, on_cpu=on_cpu)
    terms = find_terms(config.argument("label_smoothing_factor"), config.model.z_loss)
    check_loss(config.perf.loss_kernel, terms, "cpu" if on_cpu else "cuda")
    check_compile(config.perf.compile, "cpu" if on_cpu else "cuda", loaded.deepspeed)

    from training.run.session import run_training

    run_training(loaded, world, finish, signals)


def leave_out_unneeded(config: Config) -> None:
    """Packages that this recipe does not use are not imported by others either: a start takes seconds less."""
    if config.model.path is None:  # saved weights may be held in 4 bits by the same package
        for package in list_unneeded_imports(config.argument("optim")):
            leave_out(package)
    if not any(source.path.startswith(HUB_PREFIX) for source in config.data.sources):
        leave_out("datasets")


def find_needed(config: Config) -> list[Path]:
    """What a run reads or keeps outside its own directory."""
    named = [config.model.path, config.tokenizer.path, *(source.path for source in config.data.sources)]
    return [Path(config.data.store_dir), *(Path(name) for name in named if name and os.path.exists(name))]


def _find_refusal(error: Exception, loaded: LoadedConfig | None) -> str | None:
    """What the user can correct, in one line; None for a fault of the program."""
    if isinstance(error, UserError):
        return loaded.located(str(error)) if loaded else str(error)
    if isinstance(error, ModuleNotFoundError):
        return describe_missing(error)
    return describe_refusal(error) if isinstance(error, OSError) else None


def _refuse(world: World, message: str) -> int:
    tell(vars(RankEnd(world.rank, 2, message)))
    print(f"error: {message}" if world.is_main else f"error on rank {world.rank}: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(run_command(main, prints=False))
