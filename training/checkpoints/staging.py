"""One save, on one rank: what the Trainer and DeepSpeed write goes to `RUN/.staging/checkpoint-N`.

A rank that raised in the middle of a save would leave the others waiting in a collective of it. So an error in writing
is kept here, later writes are left out, and the save goes on to its end, where the ranks agree.

With `in_background`, what is written is first copied to host memory, and `run` writes it, in a thread.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from training.checkpoints.manifest import FileEntry, hash_file, list_files

STAGING = ".staging"
RNG_STATE = "rng_state_"
_torch_save = torch.save


class Staging:
    """The files of one save that this rank writes.

    Attributes:
        path: where they go. error: the first in writing them. files: hashes of those that are on disk, by name.
    """

    def __init__(self, run_dir: Path, step: int, *, in_background: bool = False, writes: bool = True) -> None:
        self.step = step
        self.path = run_dir / STAGING / f"checkpoint-{step}"
        self.target = run_dir / f"checkpoint-{step}"
        self.error: Exception | None = None
        self.files: dict[str, FileEntry] = {}
        self.in_background = in_background
        self._writes = writes
        self._saved: set[str] = set()
        self._jobs: list[Callable[[], object]] = []

    def write(self, job: Callable[[], object]) -> None:
        """Write something, now or in `run`; keep an error."""
        if self.in_background:
            self._jobs.append(job)
        else:
            self._try(job)

    def write_now(self, job: Callable[[], object]) -> None:
        """Write something small, also where the rest is left to the background; keep an error."""
        self._try(job)

    def fail(self, error: Exception) -> None:
        """Keep an error, if it is the first."""
        self.error = self.error or error

    def run(self) -> None:
        """Write what was left to the background, then flush and hash the files of this rank. Raises nothing."""
        for job in self._jobs:
            self._try(job)
        self._jobs = []
        self._try(self._hash_own)

    @contextmanager
    def collecting(self, engine: Any = None) -> Iterator[None]:
        """Within, `torch.save` below `path` and DeepSpeed's `engine` write through `write`."""
        save = torch.save
        torch.save = self._save_torch
        try:
            if engine is None:
                yield
            else:
                with self._of_engine(engine):
                    yield
        finally:
            torch.save = save

    def _try(self, job: Callable[[], object]) -> None:
        if self.error is None:
            try:
                job()
            except Exception as error:  # whatever it is, the ranks agree on it later
                self.error = error

    def _save_torch(self, value: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        """`torch.save` through a file of Python's, whose errors have a number."""
        target = Path(f) if isinstance(f, str | Path) else None
        if target is None or not target.is_relative_to(self.path):
            _torch_save(value, f, *args, **kwargs)
            return
        self._saved.add(target.relative_to(self.path).as_posix())
        if self.in_background:
            copy = _Chunks()
            _torch_save(value, cast(Any, copy), *args, **kwargs)
            self.write(lambda: _write_chunks(target, copy))
            return

        def write_now() -> None:
            with target.open("wb") as file:
                _torch_save(value, file, *args, **kwargs)

        self.write(write_now)

    @contextmanager
    def _of_engine(self, engine: Any) -> Iterator[None]:
        """Between its collectives, DeepSpeed's rank 0 makes directories and writes two small files."""
        save, copy_script = engine.save_checkpoint, engine._copy_recovery_script

        @functools.wraps(save)
        def save_checkpoint(save_dir: str, *args: Any, **kwargs: Any) -> Any:
            tag = f"global_step{engine.global_steps}"
            self._try(lambda: (Path(save_dir) / tag).mkdir(parents=True, exist_ok=True))
            result = save(save_dir, *args, save_latest=False, **kwargs)
            if engine.global_rank == 0:
                self._try(lambda: (Path(save_dir) / "latest").write_text(tag))
            return result

        engine.save_checkpoint = save_checkpoint
        engine._copy_recovery_script = lambda path: self._try(lambda: copy_script(path))
        try:
            yield
        finally:
            del engine.save_checkpoint, engine._copy_recovery_script

    def _hash_own(self) -> None:
        """What this rank gave to `torch.save`, and, of the rank that writes for all, what else lies at the top."""
        names = self._saved
        if self._writes:
            others = (name for name in list_files(self.path) if "/" not in name and not name.startswith(RNG_STATE))
            names = names | set(others)
        self.files = {name: hash_file(self.path / name) for name in sorted(names)}


def clear_staging(run_dir: Path) -> tuple[int, int]:
    """Remove what killed processes have left in `.staging/`: unfinished saves, and checkpoints that were being removed.
    How many directories, and their bytes. A file that cannot be removed stays."""
    left = [path for path in (run_dir / STAGING).glob("*") if path.is_dir()]
    size = sum(path.stat().st_size for folder in left for path in folder.rglob("*") if path.is_file())
    shutil.rmtree(run_dir / STAGING, ignore_errors=True)
    return len(left), size


def copy_to_host(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies in host memory of all that training changes; tensors that share their values (tied weights) still do.

    Parameters without gradients are not copied.
    """
    copies: dict[Any, torch.Tensor] = {}
    result = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.nn.Parameter) and not tensor.requires_grad:
            result[name] = tensor.detach()
            continue
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if key not in copies:
            copies[key] = tensor.detach().to("cpu", copy=True)
        result[name] = copies[key]
    return result


class _Chunks:
    """A file in host memory, as what was written to it."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: Any) -> int:
        self.parts.append(bytes(data))
        return len(self.parts[-1])

    def flush(self) -> None:
        pass


def _write_chunks(target: Path, copy: _Chunks) -> None:
    with target.open("wb") as file:
        while copy.parts:
            file.write(copy.parts.pop(0))  # memory is given back as it reaches the file
