"""The Swift self-check can't be compiled here; that it names all that bench.json must hold can be read."""

import json
import re
from pathlib import Path

import stlm_edge

ROOT = Path(__file__).parents[2]


def required(schema: dict, definitions: dict) -> set[str]:
    """The names that a JSON Schema requires, and those of what they hold in their turn."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    names = set(schema.get("required", ()))
    inside = [schema["properties"][name] for name in names] + schema.get("anyOf", []) + [schema.get("items", {})]
    return names.union(*(required(part, definitions) for part in inside if part))


def test_it_names_the_version_that_it_belongs_to_and_ends_with_done() -> None:
    text = (ROOT / "benchmarks" / "iphone" / "SelfCheck.swift").read_text()
    assert f'let version = "{stlm_edge.__version__}"' in text
    assert text.index('dropLast() + ",\\"done\\":true}"') > text.index('"rows": [row],')


def test_the_swift_self_check_writes_every_field_of_the_schema() -> None:
    schema = json.loads((ROOT / "stlm_edge" / "schemas" / "bench-1.schema.json").read_text())
    written = set(re.findall(r'"(\w+)\\?":', (ROOT / "benchmarks" / "iphone" / "SelfCheck.swift").read_text()))
    of_others = {"streams", "images_per_second", "image_auroc", "pixel_auroc", "aupro"}  # in what it leaves empty
    assert required(schema, schema["$defs"]) - written - of_others == set()
