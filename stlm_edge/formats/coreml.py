"""A Core ML package, `.mlpackage`: its files, and its metadata, read without coremltools.

The model is one protobuf message, Model (Model.proto, apple.github.io/coremltools/mlmodel). Only packages with exactly
these files and this `Manifest.json`, which names the parts, are accepted, so that no part can be outside the folder.
"""

import json
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from stlm_edge.formats import intact
from stlm_edge.formats.intact import Malformed, mapped
from stlm_edge.formats.protobuf import messages, string_map

_AUTHOR = "com.apple.CoreML"
MANIFEST, MODEL, WEIGHTS = "Manifest.json", f"Data/{_AUTHOR}/model.mlmodel", f"Data/{_AUTHOR}/weights/weight.bin"
_DESCRIPTION, _METADATA, _USER_DEFINED = 2, 100, 100


def manifest_text() -> str:
    """Return the `Manifest.json` of every package that stlm-export writes; its UUIDs never change."""
    parts = {"model.mlmodel": "CoreML Model Specification", "weights": "CoreML Model Weights"}
    identifiers = {name: str(uuid5(NAMESPACE_URL, f"stlm-edge/{name}")) for name in parts}
    entries = {
        identifiers[name]: {"author": _AUTHOR, "description": text, "name": name, "path": f"{_AUTHOR}/{name}"}
        for name, text in parts.items()
    }
    root = identifiers["model.mlmodel"]
    value = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": root}
    return json.dumps(value, indent=4) + "\n"


def check_files(package: str | Path) -> None:
    """Raise UsageError if the folder has other files than the three expected, or another `Manifest.json`."""
    intact.check_files(package, MANIFEST, MODEL, WEIGHTS)
    with mapped(Path(package) / MANIFEST, "Core ML package") as data:
        if data[:4096] != manifest_text().encode():
            raise Malformed("not as stlm-export writes it")


def read_metadata(package: str | Path) -> dict[str, str]:
    """Return the user-defined metadata. Raises UsageError for a damaged model or a duplicate key."""
    with mapped(Path(package) / MODEL, "Core ML model") as data:
        if len(descriptions := messages(data, _DESCRIPTION)) != 1:
            raise Malformed(f"{len(descriptions)} descriptions, expected one")
        if len(metadata := messages(data, _METADATA, *descriptions[0])) > 1:
            raise Malformed("duplicate metadata")
        return string_map(data, _USER_DEFINED, *metadata[0]) if metadata else {}
