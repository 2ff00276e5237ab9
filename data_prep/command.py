"""Handles errors and output for all commands.

1. `CommandParser` and `with_exit_code` turn wrong arguments, user errors and errors of the operating system into one
   line `error: …` on stderr and exit code 2.
2. `run_command` is called under `if __name__ == "__main__"`. It puts a `Guarded` stream under stdout and stderr, which
   escapes characters that the encoding lacks. If a stream cannot be written, a command whose result is its output
   (`prints=True`) ends: silently if the reader has closed the pipe (`… | head`), otherwise with code 2. A command whose
   result is on disk continues.
"""

import argparse
import errno
import functools
import io
import os
import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TextIO

from data_prep.errors import UserError

P = ParamSpec("P")

# Errors of the operating system. Any other OSError is a fault of this code and keeps its traceback.
_REFUSALS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG, errno.EMFILE,
    errno.ENFILE, errno.EIO, errno.ESTALE,
}  # fmt: skip
_READER_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ESHUTDOWN)
INTERRUPTED = 130


def describe_refusal(error: OSError) -> str | None:
    """Describe an error of the operating system in one line; None for any other OSError."""
    if error.errno not in _REFUSALS:
        return None
    advice = {errno.ENOSPC: ": free space there, or choose another directory", errno.EMFILE: ": raise `ulimit -n`"}
    file = f"{error.filename}: " if error.filename else ""
    return f"{file}{os.strerror(error.errno or 0)}{advice.get(error.errno or 0, '')}"


# Module -> package, if their names differ.
_PACKAGES = {"yaml": "PyYAML", "PIL": "pillow", "pynvml": "nvidia-ml-py", "sklearn": "scikit-learn"}
_OWN = ("training", "data_prep", "tests")


def describe_missing(error: ModuleNotFoundError) -> str | None:
    """Describe a missing package in one line; None if a part of Redline itself or of Python is missing.

    transformers raises a second error without a module name, so the causes of the error are searched for a name.
    """
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "name", None) is None:
        cause = cause.__cause__
    module = (cause.name or "").partition(".")[0] if isinstance(cause, ModuleNotFoundError) else ""
    if not module or module in (*_OWN, *sys.stdlib_module_names):
        return None
    package = _PACKAGES.get(module, module)
    return f"{package} is not installed: pip install {package}, or `make install` for all that Redline needs"


def explain_missing_packages() -> None:
    """Report a missing package in one line with exit code 2 while the modules of a command are imported.

    The `__init__` of our packages calls this before it imports other packages. It does nothing in other programs.
    """
    command = Path(sys.argv[0] if sys.argv else "")
    is_script = command.parts[-2:] == ("training", "train.py")
    if not (is_script or str(command) == "-m" or command.name.startswith("redline-")):
        return
    previous = sys.excepthook

    def explain(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        missing = describe_missing(error) if isinstance(error, ModuleNotFoundError) else None
        if missing is None:
            previous(kind, error, trace)
            return
        print(f"error: {missing}", file=sys.stderr, flush=True)
        os._exit(2)  # the hook cannot set an exit code, and nothing is open yet

    sys.excepthook = explain


def program_name(module: str) -> str:
    """Return what the user typed, for `usage:`: a console command or `python -m MODULE`."""
    name = Path(sys.argv[0] if sys.argv else "").name
    return name if name.startswith("redline-") else f"python -m {module}"


class CommandParser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are one line `error: …` with exit code 2, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Print the message to stderr and exit."""
        self.exit(2, f"error: command line: {' '.join(message.split())} (--help explains the arguments)\n")


def with_exit_code(main: Callable[P, int]) -> Callable[P, int]:
    """Wrap `main`: UserError and errors of the operating system give a line on stderr and code 2, Ctrl-C code 130."""

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            message = str(error)
        except ModuleNotFoundError as error:
            missing = describe_missing(error)
            if missing is None:
                raise
            message = missing
        except OSError as error:
            refusal = describe_refusal(error)
            if refusal is None:
                raise
            message = refusal
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return INTERRUPTED
        print(f"error: {message}", file=sys.stderr)
        return 2

    return run


class Guarded(io.RawIOBase):
    """A raw standard stream. `failure` is the first error of writing; later output is discarded."""

    def __init__(self, descriptor: int, prints: bool) -> None:
        self._descriptor = descriptor
        self._prints = prints
        self.failure: OSError | None = None

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether the descriptor is a terminal."""
        return os.isatty(self._descriptor)

    def write(self, data: Any, /) -> int:
        """Write as many bytes as possible; return their number. After a failure all bytes are discarded."""
        if self.failure is None:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # another program made the pipe or terminal non-blocking: wait for it
                select.select([], [self._descriptor], [], 1.0)
                return 0
            except OSError as error:
                self.failure = error
                if self._prints:
                    raise SystemExit(self.exit_code()) from None
                if self._descriptor == 1:
                    print(f"redline | stdout: {error.strerror}: what follows is not shown", file=sys.stderr)
        return len(data)

    def exit_code(self) -> int:
        """Return 0 if all was written or the reader has closed the pipe, else 2, with a line on stderr."""
        if self.failure is None or self.failure.errno in _READER_GONE:
            return 0
        print(f"error: stdout: {self.failure.strerror}", file=sys.stderr)
        return 2


def guard_output(*, prints: bool) -> None:
    """Put a `Guarded` stream under stdout and stderr; if `prints`, a failure of stdout ends the process."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed, so the next opened file would get this descriptor
            os.open(os.devnull, os.O_RDWR)
    sys.stderr = _guard(sys.stderr, 2, prints=False)
    sys.stdout = _guard(sys.stdout, 1, prints=prints)


def _guard(stream: TextIO | None, descriptor: int, *, prints: bool) -> TextIO:
    raw = Guarded(descriptor, prints)
    if stream is not None:
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )


def run_command(main: Callable[[], int], *, prints: bool) -> int:
    """Run `main()` with guarded output; return the exit code. prints: its result is only what it prints."""
    guard_output(prints=prints)
    code = main()
    sys.stdout.flush()
    return code
