"""Tests that cuts depend on content: an edit changes only the chunks around it, and chunks cover a file exactly."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.read import chunks
from data_prep.read.chunks import Content, cut_file, find_true
from data_prep.read.files import Format
from data_prep.read.records import Span, read_records
from data_prep.read.sources import SourceFile
from tests.data_prep.conftest import make_texts, set_part_bytes


def cut(path: Path, data: bytes, format: Format = "jsonl") -> Content:
    path.write_bytes(data)
    return cut_file(SourceFile(str(path), format, len(data)))


def make_lines(seed: int, count: int, most: int = 60) -> list[bytes]:
    generator = np.random.default_rng(seed)
    return [generator.integers(32, 126, generator.integers(0, most), np.uint8).tobytes() for _ in range(count)]


@pytest.fixture(scope="module", autouse=True)
def _small_windows():
    with pytest.MonkeyPatch.context() as patch:
        set_part_bytes(patch, 1000, 3000)
        yield


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), most=st.sampled_from([3, 60, 900, 9000]), ending=st.booleans())
def test_pieces_are_the_file_cut_at_line_ends_with_their_line_numbers(tmp_path_factory, seed, most, ending):
    path = tmp_path_factory.mktemp("x") / "a.jsonl"
    data = b"\n".join(make_lines(seed, 90_000 // most, most)) + b"\n" * ending
    found = cut(path, data).chunks
    at, line = 0, 1
    for chunk in found:
        piece = data[chunk.start : chunk.end]
        assert (chunk.start, chunk.first_line, chunk.size) == (at, line, len(piece))
        assert chunk.hash == xxhash.xxh3_128_hexdigest(piece)
        at, line = at + len(piece), line + piece.count(b"\n")
        if chunk is not found[-1]:
            assert piece.endswith(b"\n")
            longest = max(map(len, piece.split(b"\n")))
            assert len(piece) > 1000
            assert len(piece) <= 3000 + 128 or longest > 2000 - 128
    assert at == len(data)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["insert", "delete", "change"]), count=st.integers(1, 4))
def test_an_edit_changes_the_pieces_it_touches(tmp_path_factory, seed, kind, count):
    path = tmp_path_factory.mktemp("x") / "a.jsonl"
    lines = make_lines(seed, 4000)  # about 60 pieces
    before = cut(path, b"\n".join(lines))
    generator = np.random.default_rng(seed)
    for _ in range(count):
        at = int(generator.integers(0, 1000))
        if kind == "insert":
            lines.insert(at, b"an inserted line")
        elif kind == "delete":
            del lines[at]
        else:
            lines[at] = b"another line"
    after = cut(path, b"\n".join(lines))
    changed = {chunk.hash for chunk in after.chunks} - {chunk.hash for chunk in before.chunks}
    assert after.hash != before.hash
    assert 1 <= len(changed) <= 4 * count + 3
    last = after.chunks[-1]
    assert last.hash == before.chunks[-1].hash
    assert last.first_line - before.chunks[-1].first_line == {"insert": count, "delete": -count, "change": 0}[kind]


def test_the_mean_number_of_changed_pieces_is_small(tmp_path: Path):
    changed = []
    for seed in range(30):
        lines = make_lines(seed, 2000)
        before = cut(tmp_path / "a.jsonl", b"\n".join(lines))
        lines.insert(20, b"an inserted line")
        after = cut(tmp_path / "a.jsonl", b"\n".join(lines))
        changed.append(len({chunk.hash for chunk in after.chunks} - {chunk.hash for chunk in before.chunks}))
    assert np.mean(changed) < 1.5


def test_much_inserted_text_is_cut_by_itself_and_the_rest_falls_in_step(tmp_path: Path):
    before = cut(tmp_path / "a.jsonl", b"\n".join(make_lines(0, 4000)))
    after = cut(tmp_path / "a.jsonl", b"\n".join(make_lines(1, 1000) + make_lines(0, 4000)))
    kept = {chunk.hash for chunk in after.chunks} & {chunk.hash for chunk in before.chunks}
    assert len(kept) > len(before.chunks) - 8


def test_lines_that_only_differ_far_from_their_ends_and_equal_lines(tmp_path: Path):
    same = b"x" * 50
    for lines in ([same] * 2000, [same + bytes([65 + i % 26]) * 3 + same * 3 for i in range(600)]):
        found = cut(tmp_path / "a.jsonl", b"\n".join(lines))
        assert sum(chunk.size for chunk in found.chunks) == len(b"\n".join(lines))
        assert len(found.chunks) > 10


@pytest.mark.parametrize("format", ["csv", "text", "json"])
def test_other_formats_and_small_files_are_one_piece(tmp_path: Path, format: Format):
    data = b"\n".join(make_lines(0, 1000))
    assert [chunk[:4] for chunk in cut(tmp_path / "a", data, format).chunks] == [(0, None, 1, len(data))]
    assert [chunk[:4] for chunk in cut(tmp_path / "a.jsonl.gz", data).chunks] == [(0, None, 1, len(data))]
    assert [chunk[:4] for chunk in cut(tmp_path / "a.jsonl", data[:3000]).chunks] == [(0, None, 1, 3000)]
    assert [chunk[:4] for chunk in cut(tmp_path / "a.jsonl", b"").chunks] == [(0, None, 1, 0)]


def test_any_changed_byte_changes_the_hash_of_the_file(tmp_path: Path):
    data = b"\n".join(make_lines(0, 300))
    pq.write_table(pa.table({"text": [line.decode() for line in make_lines(1, 40)]}), tmp_path / "b.parquet")
    for path, format, content in (
        ("a.jsonl", "jsonl", data),
        ("b.parquet", "parquet", (tmp_path / "b.parquet").read_bytes()),
    ):
        known = cut(tmp_path / path, content, format).hash  # type: ignore[arg-type]
        for at in range(0, len(content), 17):
            changed = content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]
            assert cut(tmp_path / path, changed, format).hash != known, at  # type: ignore[arg-type]


def test_parquet_is_cut_by_row_group_and_its_hash_knows_the_schema(tmp_path: Path):
    path = tmp_path / "a.parquet"

    def write(texts: list[str], **options) -> Content:
        pq.write_table(pa.table({options.pop("name", "text"): texts}), path, row_group_size=10, **options)
        return cut_file(SourceFile(str(path), "parquet", path.stat().st_size))

    texts = [f"text {i}" for i in range(35)]
    first = write(texts)
    assert [chunk[:3] for chunk in first.chunks] == [(0, 1, 1), (1, 2, 11), (2, 3, 21), (3, 4, 31)]
    second = write(["longer text 0", *texts[1:]])
    assert [a.hash == b.hash for a, b in zip(first.chunks, second.chunks, strict=True)] == [False, True, True, True]
    for other in (write(texts, name="other"), write(texts, compression="none")):
        assert not {chunk.hash for chunk in other.chunks} & {chunk.hash for chunk in first.chunks}
    assert write(texts) == first
    path.write_bytes(path.read_bytes()[:-20])
    assert [chunk[:3] for chunk in cut_file(SourceFile(str(path), "parquet", 9)).chunks] == [(0, None, 1)]


@pytest.mark.parametrize("kind", [pa.ipc.new_stream, pa.ipc.new_file])
def test_arrow_is_cut_behind_record_batches_that_its_content_chooses(tmp_path: Path, kind):
    path = tmp_path / "a.arrow"

    def write(texts: list[str], size: int = 5, **columns) -> Content:
        table = pa.table({"text": texts, "words": [text.split() for text in texts], **columns})
        with kind(str(path), table.schema.with_metadata({"made": str(len(texts))})) as writer:
            writer.write_table(table, max_chunksize=size)
        return cut_file(SourceFile(str(path), "arrow", path.stat().st_size))

    texts = [f"text {i} " * (i % 9) for i in range(600)]
    first = write(texts)
    assert len(first.chunks) > 8
    found = [
        (record.number, record.value["text"])  # type: ignore[union-attr]
        for chunk in first.chunks
        for record in read_records(Span(str(path), "arrow", chunk.start, chunk.end, chunk.first_line))
    ]
    assert found == list(enumerate(texts, 1))
    for changed in (["a new one", *texts[1:]], [*make_texts(5), *texts]):  # one batch changed, or one added in front
        assert len({chunk.hash for chunk in write(changed).chunks} - {chunk.hash for chunk in first.chunks}) <= 2
    assert write(texts) == first
    assert not {chunk.hash for chunk in write(texts, id=range(600)).chunks} & {chunk.hash for chunk in first.chunks}
    assert len(write(texts, word=pa.array(texts).dictionary_encode()).chunks) == 1


def test_a_damaged_arrow_file_is_cut_or_whole(tmp_path: Path):
    sink = pa.BufferOutputStream()
    table = pa.table({"text": [f"text {i}" * (i % 9) for i in range(200)]})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    data, generator = sink.getvalue().to_pybytes(), np.random.default_rng(0)
    counts = set()
    for _ in range(300):
        damaged = bytearray(data)
        damaged[generator.integers(len(data))] = generator.integers(256)
        found = cut(tmp_path / "a.arrow", bytes(damaged[: generator.integers(len(data) // 2, 2 * len(data))]), "arrow")
        counts.add(len(found.chunks) > 1)
    assert counts == {False, True}


def test_find_true():
    generator = np.random.default_rng(0)
    for size in (0, 1, 7, 8, 9, 1000):
        mask = generator.random(size) < 0.1
        assert find_true(mask).tolist() == np.flatnonzero(mask).tolist()
    assert chunks.MIN_BYTES >= chunks.REACH
