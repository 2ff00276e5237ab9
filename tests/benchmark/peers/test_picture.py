"""The picture of costs, from pages as `peers` writes them."""

import json

import matplotlib.image
import pytest

from data_prep.errors import UserError
from training.benchmark.peers.command import main
from training.benchmark.peers.picture import read_costs

RATES = {(512, 4): (4000, 2000), (1024, 2): (3000, 1000), (512, 1): (2000, 1500)}


@pytest.fixture
def pages(tmp_path):
    written = []
    for (seq_len, batch), (ours, theirs) in RATES.items():
        measured = {
            "redline": [{"tokens_per_second": ours + change} for change in (-500, 0, 100)],
            "stock_bf16": [{"tokens_per_second": theirs}],
        }
        situations = [
            {"name": "pretrain", "shape": [20, seq_len, batch], "measured": measured, "not measured": {}},
            {"name": "chat", "shape": [20, 512, 8], "measured": {"redline": [{"tokens_per_second": 1}]}},
        ]
        page = tmp_path / f"{seq_len}-{batch}.md"
        page.with_suffix(".json").write_text(json.dumps({"machine": {}, "situations": situations}))
        written.append(page)
    return written


def test_costs_are_medians_over_rounds(pages):
    costs = read_costs(pages)
    assert costs == {
        "redline": {(512, 4): 250.0, (1024, 2): 1e6 / 3000, (512, 1): 500.0},
        "stock_bf16": {(512, 4): 500.0, (1024, 2): 1000.0, (512, 1): 1e6 / 1500},
    }


def test_the_command_draws_it(pages, tmp_path, capsys):
    output = tmp_path / "new" / "costs.png"
    assert main(["--picture", *map(str, pages), "--out", str(output)]) == 0
    pixels = matplotlib.image.imread(output)
    assert pixels.shape[1] > 600 and pixels[..., :3].std() > 0.02


def test_a_page_without_numbers_is_refused(tmp_path, capsys):
    assert main(["--picture", str(tmp_path / "no.md"), "--out", str(tmp_path / "x.png")]) == 2
    assert "no JSON of `peers` beside it" in capsys.readouterr().err
    (tmp_path / "empty.json").write_text('{"situations": []}')
    with pytest.raises(UserError, match="no page has measured"):
        read_costs([tmp_path / "empty.md"])
