"""The two sides of the packing row do the same work."""

import numpy as np
import pytest

from training.benchmark.data.packing import draw_lengths, pack_with_redline, pack_with_trl


def test_lengths_are_drawn_from_those_there_are_and_always_the_same():
    lengths = np.array([3, 5, 7], np.int32)
    drawn = draw_lengths(lengths, 1000)
    assert set(drawn.tolist()) == {3, 5, 7} and drawn.dtype == np.int64
    assert np.array_equal(drawn, draw_lengths(lengths, 1000))


def test_trl_packs_weightless_ids_as_it_packs_real_ones(tmp_path):
    pytest.importorskip("trl", reason="requirements-dev.txt")
    import datasets
    from trl import pack_dataset

    lengths = np.random.default_rng(0).integers(1, 65, 500)
    np.save(tmp_path / "lengths.npy", lengths)
    real = datasets.Dataset.from_dict({"input_ids": [[1] * length for length in lengths.tolist()]})
    expected = len(pack_dataset(real, 64, "bfd", {"batch_size": None}))
    sides = [pack_with_trl(tmp_path / "lengths.npy", 64, whole) for whole in (True, False)]
    assert [side.num_rows for side in sides] == [expected, expected]
    assert pack_with_redline(tmp_path / "lengths.npy", 64).num_rows == expected
