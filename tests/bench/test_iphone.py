"""The Swift self-check can't be compiled here; that it names all that bench.json must hold can be read."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def required(schema: object) -> set[str]:
    """The names that any object in a JSON Schema requires."""
    parts = list(schema.values()) if isinstance(schema, dict) else schema if isinstance(schema, list) else []
    own = set(schema.get("required", ())) if isinstance(schema, dict) else set()
    return own.union(*map(required, parts))


def test_the_swift_self_check_writes_every_field_of_the_schema() -> None:
    schema = json.loads((ROOT / "stlm_edge" / "schemas" / "bench-1.schema.json").read_text())
    written = set(re.findall(r'"(\w+)":', (ROOT / "benchmarks" / "iphone" / "SelfCheck.swift").read_text()))
    of_others = {"streams", "pictures_per_second", "image_auroc", "pixel_auroc", "aupro"}  # in what it leaves empty
    assert required(schema) - written - of_others == set()
