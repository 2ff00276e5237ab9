"""progress.json is JSON, and one of an older Redline that is not is read all the same."""

import json
import math

from training.checkpoints.progress import Progress


def refuse(token):
    raise AssertionError(f"{token} is no JSON")


def test_a_sum_that_is_not_finite_is_null(tmp_path):
    Progress([1.5, math.nan], 3, 40, position=7).write(tmp_path)
    read = json.loads((tmp_path / "progress.json").read_text(), parse_constant=refuse)
    assert read["loss_sums"] == [1.5, None]
    assert Progress.read(tmp_path).loss_sums == [1.5, None]


def test_tokens_that_json_forbids_are_read(tmp_path):
    (tmp_path / "progress.json").write_text(
        '{"loss_sums": [NaN], "last_logged_step": 4, "tokens": 10, "seconds": 1.0, "position": 8, "order": {}}'
    )
    assert math.isnan(Progress.read(tmp_path).loss_sums[0] or 0.0)
