"""Tests that a file has its old or new content, and that a failed attempt leaves no file."""

import pytest

from data_prep.atomic_files import TEMPORARY_PATTERN, name_temporary, write_atomically


@pytest.mark.parametrize("durable", [True, False])
def test_content_is_replaced(tmp_path, durable):
    path = tmp_path / "a"
    assert write_atomically(path, b"one", durable=durable) == path
    write_atomically(path, iter([b"t", b"wo"]), durable=durable)
    assert path.read_bytes() == b"two" and list(tmp_path.iterdir()) == [path]


def test_a_source_that_raises_leaves_the_old_content(tmp_path):
    def break_off():
        yield b"half"
        raise ValueError("the stream broke")

    path = write_atomically(tmp_path / "a", b"old")
    with pytest.raises(ValueError, match="the stream broke"):
        write_atomically(path, break_off())
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_temporary_names_match_their_pattern_and_differ(tmp_path):
    first, second = (name_temporary(tmp_path / "a.json") for _ in range(2))
    assert first != second and first.match(TEMPORARY_PATTERN) and first.parent == tmp_path
