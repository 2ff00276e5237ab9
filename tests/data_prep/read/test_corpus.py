from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.read.corpus import find_corpus_files, read_corpus_documents

FILES = {
    "os.py": "import sys\n",
    "encodings/utf_8.py": "x = 1\n",
    "encodings/cp1250.py": '""" generated from \'MAPPINGS\' with gencodec.py."""\n',
    "html/entities.py": "entities = {}\n",
    "json/__init__.py": '"""JSON."""\n',
    "json/empty.py": "",
    "test/test_os.py": "x = 1\n",
    "ctypes/test/test_x.py": "x = 1\n",
    "idlelib/idle_test/test_y.py": "x = 1\n",
    "site-packages/numpy.py": "x = 1\n",
    "ensurepip/_bundled/pip.py": "x = 1\n",
    "_sysconfigdata__linux.py": "x = 1\n",
    "README.txt": "no source",
    "pydoc_data/topics.py": "topics = {'a': 'The a.', 'b': 'The b.', 'again': 'The a.'}\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_leaves_out_tests_packages_tables_and_machine_paths(root: Path):
    names = [path.relative_to(root).as_posix() for path in find_corpus_files(root)]
    assert names == ["encodings/utf_8.py", "json/__init__.py", "os.py", "pydoc_data/topics.py"]


def test_topics_are_documents_of_their_own_and_come_once(root: Path):
    assert read_corpus_documents(root / "pydoc_data/topics.py") == ["The a.", "The b."]


def test_coding_line_is_obeyed(tmp_path: Path):
    path = tmp_path / "latin.py"
    path.write_bytes("# -*- coding: latin-1 -*-\n# é\n".encode("latin-1"))
    assert "é" in read_corpus_documents(path)[0]


def test_python_without_sources_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="no Python sources"):
        find_corpus_files(tmp_path)


def test_the_real_one_is_the_same_twice_and_large():
    files = find_corpus_files()
    assert files == find_corpus_files()
    assert len(files) > 300
    assert sum(path.stat().st_size for path in files) > 5e6
    assert not [path for path in files if {"test", "tests", "site-packages"} & set(path.parts[-3:])]
