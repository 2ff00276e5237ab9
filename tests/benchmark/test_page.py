"""What the pages of all benchmarks share."""

import json

from training.benchmark.page import format_machine, look_at_machine, read_content, write_page

MACHINE = {
    "cpu_count": 2, "cpu": "x", "platform": "Linux 6", "python": "3.12", "packages": ["torch", "trl"], "torch": "2.1",
    "trl": None, "git_commit": "abc", "started": "2026-01-02 03:04 UTC", "command": "python -m y",
}  # fmt: skip


def test_machine_and_command_leave_out_what_is_not_known():
    page = "2 cores of x; Linux 6, Python 3.12, torch 2.1. Commit abc, 2026-01-02 03:04 UTC.\n\nCommand: `python -m y`."
    assert format_machine(MACHINE) == page
    more = format_machine({**MACHINE, "memory_gb": 24.6}, where="GPU; ", remark=" Idle.")
    assert more == "GPU; " + page.replace("of x;", "of x, 25 GB;").replace("UTC.", "UTC. Idle.")


def test_versions_are_those_of_the_named_packages():
    machine = look_at_machine("c", ("torch", "no-such-package"), device="CPU")
    assert machine["torch"] and machine["no-such-package"] is None
    assert (machine["command"], machine["device"]) == ("c", "CPU")
    assert machine["started"] in format_machine(machine) and "no-such-package" not in format_machine(machine)


def test_the_page_and_its_numbers_are_written_side_by_side(tmp_path):
    output = tmp_path / "new" / "page.md"
    write_page(output, "# Page\n", {"machine": MACHINE, "value": float("nan")})
    assert output.read_text() == "# Page\n"
    assert read_content(output) == {"machine": MACHINE, "value": None}
    assert json.loads(output.with_suffix(".json").read_text())["value"] is None
