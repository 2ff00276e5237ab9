"""Tests output that is closed, full or in another encoding, and errors of the operating system."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.command import describe_missing, describe_refusal, with_exit_code
from data_prep.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import pathlib, sys
from data_prep.command import run_command

def main():
    for line in range(20_000):
        print("line", line, "\u732b", flush=True)
    pathlib.Path(sys.argv[1]).write_text("to its end")
    return 0

sys.exit(run_command(main, prints=sys.argv[2] == "prints"))
"""


def run(tmp_path: Path, kind: str, shell: str) -> tuple[int, str, bool]:
    """Run a command, `$RUN` in `shell`; return its exit code, stderr, and whether it ran to its end."""
    done = tmp_path / "done"
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    command = f"{sys.executable} {tmp_path / 'script.py'} {done} {kind}"
    full = shell.replace("$RUN", command)
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    result = subprocess.run(["bash", "-c", f"{full}; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, env=env)
    return result.returncode, result.stderr, done.exists()


@pytest.mark.parametrize("shell", ["$RUN | head -1", "$RUN > /dev/full", "$RUN >&-", "$RUN >&- 2>&- <&-"])
def test_what_makes_files_goes_on_without_its_output(tmp_path: Path, shell: str) -> None:
    code, stderr, finished = run(tmp_path, "makes", shell)
    assert (code, finished) == (0, True)
    assert "Traceback" not in stderr and stderr.count("\n") <= 1
    assert ("is not shown" in stderr) == (">&-" not in shell)


@pytest.mark.parametrize(
    ("shell", "code", "line"),
    [("$RUN | head -1", 0, ""), ("$RUN > /dev/full", 2, "error: stdout: No space left on device\n")],
)
def test_what_prints_ends_with_its_output(tmp_path: Path, shell: str, code: int, line: str) -> None:
    assert run(tmp_path, "prints", shell) == (code, line, False)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252"])
def test_characters_that_an_encoding_lacks_are_escaped(tmp_path: Path, encoding: str) -> None:
    code, stderr, finished = run(tmp_path, "prints", f"PYTHONIOENCODING={encoding} $RUN > {tmp_path}/out")
    assert (code, stderr, finished) == (0, "", True)
    assert (tmp_path / "out").read_text().startswith("line 0 \\u732b\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(errno.EACCES, "x", "models"), "error: models: Permission denied\n"),
        (OSError(errno.ENOSPC, "x", "/disk/a"), "error: /disk/a: No space left on device: free space there, or"),
        (UserError("data.seq_len: odd"), "error: data.seq_len: odd\n"),
    ],
)
def test_one_line_and_code_2(capsys: pytest.CaptureFixture[str], error: Exception, line: str) -> None:
    def main() -> int:
        raise error

    assert with_exit_code(main)() == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith(line) and stderr.count("\n") == 1


def test_a_fault_of_the_code_keeps_its_traceback() -> None:
    assert describe_refusal(FileNotFoundError(errno.ENOENT, "x", "file")) is None
    with pytest.raises(FileNotFoundError):
        with_exit_code(lambda: len(Path("/none/of/this").read_bytes()))()


def test_a_missing_package_is_found_behind_the_error_of_another_one() -> None:
    first = ModuleNotFoundError("No module named 'yaml.nodes'", name="yaml.nodes")
    second, third = (
        ModuleNotFoundError("Could not import module 'a'"),
        ModuleNotFoundError("Could not import module 'b'"),
    )
    second.__cause__, third.__cause__ = first, second
    assert (describe_missing(third) or "").startswith("PyYAML is not installed: pip install PyYAML")
    assert describe_missing(ModuleNotFoundError("Could not import module 'c'")) is None
