"""The JSON Schemas in the package are those of the dataclasses."""

import json
import runpy
from pathlib import Path

import jsonschema

SCRIPT = Path(__file__).parents[2] / "docs" / "schemas.py"


def test_schema_files_are_up_to_date() -> None:
    for path, schema in runpy.run_path(str(SCRIPT))["schemas"]().items():
        assert json.loads(path.read_text("utf-8")) == schema, f"{path.name}: run python docs/schemas.py"
        jsonschema.Draft202012Validator.check_schema(schema)
