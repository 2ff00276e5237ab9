import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from data_prep.store.arrow import find_nulls, to_arrow, to_lists, view


@pytest.mark.parametrize(
    "values", [np.arange(9, dtype=np.int32), np.arange(3), np.empty(0, np.int32), np.arange(8)[::2]]
)
def test_numbers_go_there_and_back(values: np.ndarray):
    array = to_arrow(values)
    array.validate(full=True)
    assert array.equals(pa.array(values))
    assert view(array).tolist() == values.tolist()
    assert view(array.slice(1)).tolist() == values[1:].tolist()
    assert not (len(values) and view(array).flags.writeable)
    assert to_arrow(values > 2).equals(pa.array(values > 2))


def test_lists_and_nulls():
    values, offsets = np.arange(11, dtype=np.int32), np.array([0, 3, 3, 10, 11])
    missing = np.array([False, True, False, False])
    lists = to_lists(values, offsets, missing)
    lists.validate(full=True)
    assert lists.to_pylist() == [[0, 1, 2], None, [3, 4, 5, 6, 7, 8, 9], [10]]
    assert find_nulls(lists).tolist() == missing.tolist()
    assert find_nulls(lists.slice(1, 2)).tolist() == [True, False]
    assert find_nulls(to_lists(values, offsets)).tolist() == [False] * 4


def test_building_and_reading_a_store_needs_no_pandas(tmp_path, tokenizer_dir):
    (tmp_path / "a.jsonl").write_text('{"text": "the cat"}\n{"text": "the dog"}\n')
    code = (
        "import sys; from data_prep.prepare import prepare; from data_prep.options import *;"
        "from data_prep.store.store import Store;"
        "d = DataSection(sources=[{'path': sys.argv[1]}], store_dir=sys.argv[2], validation_share=0.5);"
        "p = prepare(d, TokenizerSection(path=sys.argv[3])); t = Store.open(p.store_dir).split('train');"
        "t.lengths, t.hashes, t.sources, [t.ids(i) for i in range(len(t))];"
        "sys.exit('pandas' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.jsonl"), str(tmp_path / "stores"), str(tokenizer_dir)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
