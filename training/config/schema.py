"""JSON Schema of a recipe, for completion and checks in an editor.

    python -m training.config.schema        writes configs/schema.json again, after a change of a section

Generated from the section models and the fields of the installed TrainingArguments; the loader does not read it.
"""

import json
from typing import Any

from pydantic.json_schema import models_json_schema

from data_prep.recipe import RECIPE_DIR
from training.config.loading import sections

SCHEMA_FILE = RECIPE_DIR / "schema.json"
_NAMES = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


def build_schema() -> dict[str, Any]:
    """Draft 2020-12. Sections may be left out or empty, and a profile's `alone` holds sections again."""
    references, definitions = models_json_schema([(model, "validation") for model in sections().values()])
    known = sections()
    blocks: dict[str, Any] = {
        name: {"anyOf": [references[model, "validation"], {"type": "null"}]} for name, model in known.items()
    }
    own = {
        "extends": {
            **_NAMES,
            "description": "Recipes that this one builds on, by name or path. Later ones override earlier ones.",
        },
        "deepspeed": {
            "type": ["string", "null"],
            "description": "DeepSpeed configuration: the name of a file in ds_configs/, or the path of a JSON file.",
        },
        "alone": {
            "type": "object",
            "description": "Defaults of a profile, ignored if another recipe in the same extends sets a model.",
            "additionalProperties": False,
            "properties": blocks,
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Redline recipe",
        "type": "object",
        "additionalProperties": False,
        "properties": {**own, **blocks},
        "$defs": _without_null_defaults(definitions["$defs"]),
    }


def _without_null_defaults(definitions: dict[str, Any]) -> dict[str, Any]:
    """A missing field of TrainingArguments has the default of transformers, not null."""
    for field in definitions["TrainingSection"]["properties"].values():
        field.pop("default", None)
    return definitions


def schema_text() -> str:
    """The JSON Schema of recipes, as it is checked in."""
    return json.dumps(build_schema(), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the schema."""
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")


if __name__ == "__main__":
    main()
