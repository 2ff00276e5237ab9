import logging
import sys
import threading
import time

import pytest

from data_prep import progress as module
from data_prep.progress import format_amount, progress, track


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHOW_AFTER", 0.02)
    monkeypatch.setattr(module, "LINE_EVERY", 0.1)


def test_elsewhere_a_line_from_time_to_time_says_amount_rate_and_time_left(quick, caplog):
    caplog.set_level(logging.INFO)
    with progress("building", 4e6, "B") as advance:
        advance(1e6)
        time.sleep(0.25)
    lines = [record.getMessage() for record in caplog.records]
    assert lines
    assert all(line.startswith("building: 1.0 MB of 4.0 MB, ") for line in lines)
    assert all("MB/s" in line and " s left (" in line and line.endswith(" s so far)") for line in lines)


def test_a_step_without_a_total_says_how_long_it_has_taken(quick, caplog):
    caplog.set_level(logging.INFO)
    with progress("training the tokenizer"):
        time.sleep(0.15)
    assert caplog.records[0].getMessage() == "training the tokenizer: 0 s so far"


def test_a_short_step_and_an_inner_one_say_nothing(monkeypatch: pytest.MonkeyPatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "SHOW_AFTER", 0.1)
    monkeypatch.setattr(module, "LINE_EVERY", 0.12)
    with progress("short"):
        pass
    with progress("outer"), progress("inner", 3, "documents") as advance:
        advance(1)
        time.sleep(0.15)
    assert {record.getMessage().partition(":")[0] for record in caplog.records} == {"outer"}


def test_an_error_ends_the_thread_and_the_next_step_is_shown(quick, caplog):
    caplog.set_level(logging.INFO)
    before = threading.active_count()
    with pytest.raises(KeyError), progress("broken"):
        raise KeyError
    assert threading.active_count() == before
    assert list(track([1, 2], "counting", 2, "documents", lambda item: time.sleep(0.1) or item)) == [1, 2]
    assert any(record.getMessage().startswith("counting: 1 documents of 2 documents") for record in caplog.records)


def test_on_a_terminal_a_bar_is_drawn_and_taken_away(quick, monkeypatch: pytest.MonkeyPatch, capsys, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress("building", 10, "parts") as advance:
        advance(5)
        time.sleep(0.4)
    drawn = capsys.readouterr().err
    assert "building" in drawn and "5 parts of 10 parts" in drawn
    assert not caplog.records


@pytest.mark.parametrize(
    ("amount", "unit", "expected"), [(1.5e9, "B", "1.50 GB"), (2e6, "B", "2.0 MB"), (1234, "rows", "1,234 rows")]
)
def test_amounts_have_their_units(amount: float, unit: str, expected: str):
    assert format_amount(amount, unit) == expected
