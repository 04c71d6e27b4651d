"""Write the manifest's fields into the bundle specification, from the published JSON Schema."""

import json
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).parents[1] / "stlm_edge" / "schemas" / "manifest-1.schema.json"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marker `<!-- manifest -->` by one table per object of the schema."""
    if "<!-- manifest -->" not in markdown:
        return markdown
    schema = json.loads(SCHEMA.read_text("utf-8"))
    tables = [table("manifest.json", schema)]
    tables += [table(name, each) for name, each in schema["$defs"].items()]
    return markdown.replace("<!-- manifest -->", "\n".join(tables))


def table(name: str, schema: dict[str, Any]) -> str:
    """Return a heading, the object's description, and a row for each of its keys."""
    lines = [f"### {name}", "", schema.get("description", ""), "", "| key | type | meaning |", "| --- | --- | --- |"]
    for key, value in schema["properties"].items():
        lines.append(f"| `{key}` | {kind(value)} | {value.get('description', '')} |")
    return "\n".join([*lines, ""])


def kind(schema: dict[str, Any]) -> str:
    """Describe a property's type in a few words."""
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(kind(each) for each in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {}))}"
    return schema.get("type", "any")
