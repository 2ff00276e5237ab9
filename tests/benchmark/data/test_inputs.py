"""What the rows of the data benchmark are given to read."""

import orjson
import pytest

from training.benchmark.data.inputs import Inputs, Settings


@pytest.fixture
def inputs(tmp_path) -> Inputs:
    """Texts of 1 to 40 kB, one of 300 kB."""
    source = tmp_path / "texts.jsonl"
    sizes = [1000 * (1 + i % 40) for i in range(200)]
    sizes[77] = 300_000
    source.write_bytes(b"".join(orjson.dumps({"text": f"{i} " + "x" * size}) + b"\n" for i, size in enumerate(sizes)))
    (tmp_path / "work").mkdir()
    sizes_mb = {"build_mb": 1.0, "datasets_mb": 1.0, "scaling_mb": (0.1, 2.0), "memory_mb": (0.5, 4.0)}
    return Inputs(Settings((source,), tmp_path / "work", num_proc=1, **sizes_mb))


def test_a_sample_is_of_whole_distinct_records_from_everywhere_and_fills_its_size(inputs):
    for megabytes in (0.1, 2.0):
        lines = inputs.sampled_text(megabytes).read_bytes().splitlines(keepends=True)
        numbers = [int(orjson.loads(line)["text"].split()[0]) for line in lines]
        assert len(set(numbers)) == len(numbers)
        assert numbers != sorted(numbers) and max(numbers) > len(numbers)
        assert 0.95 * megabytes * 1e6 < sum(map(len, lines)) <= megabytes * 1e6


def test_a_record_larger_than_the_sample_is_left_out_of_it(inputs):
    assert max(map(len, inputs.sampled_text(0.1).read_bytes().splitlines())) < 100_000
    led = inputs.sampled_text(0.5, with_largest=True).read_bytes().splitlines()
    assert [index for index, line in enumerate(led) if len(line) > 100_000] == [0]
    with pytest.raises(ValueError, match="no record of .* fits into 0.0001 MB"):
        inputs.sampled_text(0.0001)
