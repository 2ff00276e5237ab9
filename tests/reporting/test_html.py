from html.parser import HTMLParser

import pytest

from training.reporting.html import build_report, render_report
from training.reporting.run_reader import load_run

from .conftest import CONFIG, ENV, EVENTS, HOSTILE, SUMMARY, make_records

SECTIONS = {"headline", "limits", "phases", "loss", "performance", "sample", "config", "environment", "events"}
VOID = {"meta", "link", "br", "img", "input", "hr", "path", "use"}


class Page(HTMLParser):
    """Tags, section ids, references and visible text; fails on tags that do not nest."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.sections: set[str] = set()
        self.references: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        if tag == "section":
            self.sections.add(values["id"] or "")
        self.references += [
            value or "" for key, value in attrs if key in {"src", "href", "xlink:href", "action", "data"}
        ]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in {"style"}:
            self.text += data


def page_of(run_dir) -> Page:
    return Page(render_report(load_run(run_dir)))


def test_full_report_is_self_contained(full_run):
    path = build_report(full_run)
    html = path.read_text("utf-8")
    page = Page(html)
    assert page.sections == SECTIONS
    assert page.references and all(reference.startswith("#") for reference in page.references)
    assert "script" not in page.tags and "link" not in page.tags and "img" not in page.tags
    assert "http" not in html and "@import" not in html and "url(" not in html.replace("url(#", "")
    assert page.tags.count("svg") == 9  # 2 losses and 8 panels, less the GPU
    assert "prefers-color-scheme:dark" in html
    assert sorted(p.name for p in full_run.iterdir() if p.name.startswith(".")) == []


def test_full_report_says_what_matters(full_run):
    text = " ".join(page_of(full_run).text.split())
    for part in (
        "finished", "9.020 → 3.410", "unigram entropy 6.431", "2.821 nats below", "12,850", "41.3 %",
        "of 1.62 TFLOP/s of AMD EPYC, 2 cores, measured bf16 matmul rate", "315.0 ms", "1.87 GiB", "10.0M",
        "waiting for the next batch", "Read at most n bytes", "max_steps: 600", "# command line",
        "zero_optimization", "abc1234", "checkpoint-200 written", "gradient norm 14.2",
    ):  # fmt: skip
        assert part in text, part


def test_everything_from_the_run_is_escaped(write_run):
    events = [{"time": HOSTILE, "step": HOSTILE, "kind": HOSTILE, "message": HOSTILE, HOSTILE: HOSTILE}]
    events.append({"kind": "bad_record", "message": HOSTILE})
    summary = {
        **SUMMARY, "name": HOSTILE, "status": HOSTILE, "attn_implementation": HOSTILE, "error": HOSTILE,
        "peak": {"tflops": 1.0, "source": HOSTILE, "device": HOSTILE}, "sample": {"prompt": HOSTILE, "text": HOSTILE},
        "phases_ms": {HOSTILE: 1.0}, "phases_pct": {}, "bad_records": [HOSTILE],
    }  # fmt: skip
    run_dir = write_run(
        make_records(50), summary, events, {HOSTILE: HOSTILE, "gpus": [HOSTILE]}, HOSTILE + CONFIG, {HOSTILE: 1}
    )
    page = page_of(run_dir)
    assert "script" not in page.tags
    assert all(reference.startswith("#") for reference in page.references)
    assert page.text.count("<script") >= 12


def test_a_run_with_nothing_but_a_config(write_run):
    html = build_report(write_run()).read_text("utf-8")
    page = Page(html)
    assert page.sections == SECTIONS and "svg" not in page.tags
    assert "There is no summary.json" in page.text and "no step logged yet" in page.text
    assert page.text.count("not measured") >= 12
    assert "0.0" not in page.text.replace("learning_rate: 0.001", "")  # nothing missing reads as a zero


def test_partial_summaries_and_malformed_inputs(write_run):
    summary = {
        "status": "failed",
        "error": "OutOfMemoryError: at step 3",
        "sample": None,
        "peak": None,
        "phases_ms": None,
    }
    events = [{}, {"time": 1e300, "step": None, "kind": None}, {"step": [1], "kind": ["a"], "message": {"b": 1}}]
    page = page_of(write_run([{"step": 1, "train/loss": None}], summary, events, {"gpus": "H200", "world_size": None}))
    assert "OutOfMemoryError: at step 3" in page.text and "no sample was written" in page.text


def test_bad_records_have_a_section_only_when_there_are_some(write_run):
    assert "bad-records" not in page_of(write_run(summary={**SUMMARY, "bad_records": 0}, name="a")).sections
    filtered = page_of(write_run(summary={**SUMMARY, "left_out": {"duplicates": 5, "too_short": 0}}, name="c"))
    assert "5 excluded: duplicates" in filtered.text and "too_short" not in filtered.text
    page = page_of(write_run(summary={**SUMMARY, "bad_records": 7}, name="b"))
    assert "bad-records" in page.sections and "7 record(s)" in page.text


def test_long_event_lists_are_cut_and_say_so(write_run):
    events = [{"time": 0, "step": step, "kind": "save", "message": f"m{step}"} for step in range(1200)]
    text = page_of(write_run(events=events)).text
    assert "The last 500 of 1200" in text and "m1199" in text and "m100 " not in text


def test_torn_line_is_said_on_the_page(write_run):
    run_dir = write_run(make_records(50), SUMMARY, EVENTS, ENV)
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step"')
    assert "the last line is incomplete" in page_of(run_dir).text


@pytest.mark.parametrize("below", [True, False])
def test_verdict_follows_the_numbers(write_run, below):
    run_dir = write_run(summary={**SUMMARY, "eval_loss_last": 3.0 if below else 7.0})
    assert ("not below the unigram entropy" in page_of(run_dir).text) is not below
