"""What every command shares: errors of one line, and output that may be closed, full or unable to show a character.

1. `with_exit_code` turns user errors and refusals of the machine into `error: …` on stderr and exit code 2.
2. `run_command` is what stands under `if __name__ == "__main__"`. It puts a `Guarded` stream under stdout and stderr:
   characters that the encoding lacks are escaped, and a stream that cannot be written does not end the program. A
   command whose product is its output (`prints=True`) ends there: silently when its reader has gone (`… | head`), with
   code 2 otherwise. One whose product is on disk continues to its end.
"""

import errno
import functools
import io
import os
import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TextIO

from data_prep.errors import UserError

P = ParamSpec("P")

# What a machine refuses; any other OSError is a fault of this code and keeps its traceback.
_REFUSALS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG, errno.EMFILE,
    errno.ENFILE, errno.EIO, errno.ESTALE,
}  # fmt: skip
_READER_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ESHUTDOWN)
INTERRUPTED = 130


def describe_refusal(error: OSError) -> str | None:
    """One line on what the machine refused, or None when the error is none of that kind."""
    if error.errno not in _REFUSALS:
        return None
    advice = {errno.ENOSPC: ": free space there, or name another place", errno.EMFILE: ": raise `ulimit -n`"}
    file = f"{error.filename}: " if error.filename else ""
    return f"{file}{os.strerror(error.errno or 0)}{advice.get(error.errno or 0, '')}"


# Module -> package, where they differ.
_PACKAGES = {"yaml": "PyYAML", "PIL": "pillow", "pynvml": "nvidia-ml-py", "sklearn": "scikit-learn"}
_OWN = ("training", "data_prep", "tests")


def describe_missing(error: ModuleNotFoundError) -> str | None:
    """One line on a package that is not installed; None when what is missing is a part of Redline itself.

    transformers raises a second error that names no module from the first one, so the causes are searched for a name.
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
    """Have a package that a command lacks told in one line, with exit code 2, while its modules are imported.

    Called by the packages' `__init__`, before anything of others is imported; does nothing in a program of others.
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
    """What the user typed, for `usage:`: a console command or `python -m MODULE`."""
    name = Path(sys.argv[0] if sys.argv else "").name
    return name if name.startswith("redline-") else f"python -m {module}"


def with_exit_code(main: Callable[P, int]) -> Callable[P, int]:
    """`main` with one line on stderr and code 2 for a UserError or a refusal of the machine, 130 for Ctrl-C."""

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
    """The bytes of a standard stream. The first failure to write is kept in `failure`; what follows goes nowhere."""

    def __init__(self, descriptor: int, prints: bool) -> None:
        self._descriptor = descriptor
        self._prints = prints
        self.failure: OSError | None = None

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """The descriptor below."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether a terminal is below."""
        return os.isatty(self._descriptor)

    def write(self, data: Any, /) -> int:
        """Write what fits; the number of bytes taken. After a failure everything is taken and dropped."""
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
        """0 while all was written, and when the reader has read enough; else 2, with a line on stderr."""
        if self.failure is None or self.failure.errno in _READER_GONE:
            return 0
        print(f"error: stdout: {self.failure.strerror}", file=sys.stderr)
        return 2


def guard_output(*, prints: bool) -> None:
    """Put a `Guarded` stream under stdout (if `prints`, one whose failure ends the process) and under stderr."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file that is opened would be taken for it
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
    """`main()` over guarded output; the exit code. prints: whether what it prints is all that it makes."""
    guard_output(prints=prints)
    code = main()
    sys.stdout.flush()
    return code
