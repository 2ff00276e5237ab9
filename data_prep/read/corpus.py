"""Finds and reads the embedded corpus: the standard library of the running Python, a real text on every machine.

`sysconfig` locates it, so it works for pyenv, python.org, containers and Debian's split packages. Modules that a
distribution omits (Debian: idlelib, tkinter) are not in the corpus. Every `.py` file is a document, in the order of the
paths. The same Python gives the same documents.

These files are left out, because nobody wrote them as prose or code:
- tests (`test`, `tests`, `idle_test`), installed and vendored packages, bytecode;
- generated tables: the character maps of `encodings` (they name `gencodec.py`), `html/entities.py`;
- files that contain paths of this machine: `_sysconfigdata*`, `sitecustomize.py`, `config-*`.
`pydoc_data/topics.py` is generated too, but its values are the language reference in plain English. Each topic is a
separate document.
"""

import ast
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from data_prep.errors import UserError

SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages", "_bundled", "lib-dynload"}
)
SKIPPED_FILES = frozenset({"html/entities.py", "sitecustomize.py"})
SKIPPED_PREFIXES = ("_sysconfigdata", "config-")
TOPICS = "pydoc_data/topics.py"
GENERATED_MARK = b"gencodec.py"


def find_corpus_files(root: Path | None = None) -> list[Path]:
    """Find the files of the corpus, sorted by path. Raises UserError when Python has no sources installed."""
    root = Path(root or sysconfig.get_path("stdlib"))
    files = [path for path in sorted(_walk(root), key=lambda path: path.relative_to(root).parts)]
    if not files:
        raise UserError(f"data.sources: no Python sources in {root}: replace 'embedded' by a source of your own")
    return files


def _walk(folder: Path, prefix: str = "") -> Iterator[Path]:
    for path in folder.iterdir():
        name = prefix + path.name
        if path.name.startswith(SKIPPED_PREFIXES) or name in SKIPPED_FILES or path.is_symlink():
            continue
        if path.is_dir():
            if path.name not in SKIPPED_FOLDERS:
                yield from _walk(path, name + "/")
        elif path.suffix == ".py" and path.stat().st_size and not _is_generated_table(path, prefix):
            yield path


def _is_generated_table(path: Path, prefix: str) -> bool:
    return prefix == "encodings/" and GENERATED_MARK in path.read_bytes()[:400]


def read_corpus_documents(path: Path) -> list[str]:
    """Read the texts of one corpus file: the whole file, or the topics of `pydoc_data/topics.py`.

    Raises SyntaxError or UnicodeDecodeError when the file does not have the encoding that it declares.
    """
    with tokenize.open(path) as file:
        text = file.read()
    if not path.as_posix().endswith(TOPICS):
        return [text]
    assignments = [node for node in ast.parse(text).body if isinstance(node, ast.Assign)]
    topics = ast.literal_eval(assignments[0].value)
    return list(dict.fromkeys(topics.values()))
