"""Write the JSON Schemas of manifest.json and bench.json into the package: `python docs/schemas.py`."""

import json
import types
import typing
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import stlm_edge
from stlm_edge.bench.result import Bench
from stlm_edge.bundle.manifest import Manifest
from stlm_edge.strict_json import Between, Items, Pattern, required_fields

FOLDER = Path(stlm_edge.__file__).parent / "schemas"


def schemas() -> dict[Path, dict[str, Any]]:
    """Return the content of each schema file."""
    return {
        FOLDER / "manifest-1.schema.json": json_schema(Manifest, "stlm-edge bundle manifest, format version 1"),
        FOLDER / "bench-1.schema.json": json_schema(Bench, "stlm-edge bench, format version 1"),
    }


def json_schema(cls: type, title: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a dataclass that `strict_json` reads."""
    definitions: dict[str, Any] = {}
    _schema(cls, definitions)
    root = definitions.pop(cls.__name__)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
    return {**head, **root, "$defs": dict(sorted(definitions.items()))}


def _schema(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        schema = _schema(arguments[0], definitions)
        for rule in arguments[1:]:
            schema |= _schema_of_rule(rule)
        return schema
    if is_dataclass(hint):
        return _schema_of_dataclass(hint, definitions)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(argument, definitions) for argument in arguments]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object"}
    names = {str: "string", int: "integer", float: "number", bool: "boolean", types.NoneType: "null"}
    return {"type": names[hint]}


def _schema_of_dataclass(cls: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if cls.__name__ not in definitions:
        hints = typing.get_type_hints(cls, include_extras=True)
        definitions[cls.__name__] = {
            "description": " ".join((cls.__doc__ or "").split("\n\n")[0].split()),
            "type": "object",
            "properties": {key: _schema(field, definitions) for key, field in hints.items()},
            "required": required_fields(cls),
            "additionalProperties": False,
        }
    return {"$ref": f"#/$defs/{cls.__name__}"}


def _schema_of_rule(rule: Any) -> dict[str, Any]:
    if isinstance(rule, Between):
        return {"minimum": rule.minimum} | ({} if rule.maximum is None else {"maximum": rule.maximum})
    if isinstance(rule, Pattern):
        return {"pattern": f"^({rule.regex})$"}
    if isinstance(rule, Items):
        return {"minItems": rule.minimum, "maxItems": rule.maximum}
    return {"description": rule}


if __name__ == "__main__":
    for path, schema in schemas().items():
        path.write_text(json.dumps(schema, indent=2, ensure_ascii=False) + "\n", "utf-8")
