"""docs/troubleshooting.md quotes messages as the code prints them."""

import ast
import re

import pytest

from tests.integration.conftest import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
LEAST_LETTERS = 12  # shorter fragments occur by chance

# Message -> why it is not in our sources.
OTHER_PROGRAMS = {
    "No space left on device": "printed by the operating system",
    "trust_remote_code": "a key, for which transformers asks with a sentence of its own",
}

# Where a message is put together: at its values (numbers, quoted texts, words in capitals, and those named here, for
# which the page shows an example), and at colons.
JOINTS = re.compile(
    r"-*…|: |\d[\d,.]*|'[^']*'|\b_?[A-Z][A-Z_]*\b|\(gptq\)|a file of axolotl|Frage, Antwort|train, test|reasoning"
    r"|process|training\.learning_rate"
)


def quoted_messages() -> list[str]:
    """The messages in the first column of the tables that have one."""
    rows = re.findall(r"^\| `([^`]*)`[^|]*\|", PAGE, re.MULTILINE)
    return [row for row in rows if row not in OTHER_PROGRAMS]


def join_strings(source: str) -> str:
    """All string constants of a module, those of f-strings among them, without the fields of `str.format`."""
    constants = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return re.sub(r"\{\w+\}", "", "\n".join(value for value in constants if isinstance(value, str)))


SOURCES = "\n".join(
    join_strings(path.read_text(encoding="utf-8"))
    for package in ("training", "data_prep")
    for path in sorted((ROOT / package).rglob("*.py"))
)


@pytest.mark.parametrize("message", quoted_messages())
def test_message_is_in_the_sources(message):
    fragments = [part.strip(" :;,.()") for part in JOINTS.split(message)]
    missing = [part for part in fragments if len(part) >= LEAST_LETTERS and part not in SOURCES]
    assert not missing


def test_messages_were_found():
    assert len(quoted_messages()) > 25
    assert all(f"`{message}`" in PAGE for message in OTHER_PROGRAMS)
