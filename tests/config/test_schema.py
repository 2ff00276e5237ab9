import pytest
import transformers

from training.config.schema import SCHEMA_FILE, build_schema, schema_text

PINNED = "5.23.0"  # that of requirements.txt


@pytest.mark.skipif(transformers.__version__ != PINNED, reason=f"the schema is that of transformers {PINNED}")
def test_schema_is_current() -> None:
    """After a change of a section or of the pin: python -m training.config.schema."""
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text()


def test_schema_knows_every_section_and_closes_them() -> None:
    schema = build_schema()
    sections = {"model", "adapter", "tokenizer", "data", "training", "perf", "monitor", "checkpoint"}
    assert set(schema["properties"]) == sections | {"extends", "deepspeed", "alone"}
    assert schema["additionalProperties"] is False
    for name, definition in schema["$defs"].items():
        assert definition["additionalProperties"] is False, name
