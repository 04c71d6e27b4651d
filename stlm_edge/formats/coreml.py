"""A Core ML package, `.mlpackage`: which files it is made of, and its metadata read and replaced without coremltools.

The folder holds `Manifest.json`, which names the parts by made-up UUIDs; `Data/com.apple.CoreML/model.mlmodel`, one
protobuf message; and `Data/com.apple.CoreML/weights/weight.bin`, which that refers to. The message is Model
(Model.proto, apple.github.io/coremltools/mlmodel): field 2 is the description, whose field 100 is the metadata, whose
field 100, repeated, is `userDefined`, an entry of key (1) and value (2). All else is passed over, and copied byte for
byte.

Of the packages that there could be, only one made like ours is accepted: the same three files, and the very same
`Manifest.json`, so that no part of it can stand outside of the folder.
"""

import io
import json
from pathlib import Path
from typing import BinaryIO
from uuid import NAMESPACE_URL, uuid5

from stlm_edge.errors import UsageError
from stlm_edge.files import replacing
from stlm_edge.formats.protobuf import BYTES, Field, Malformed, copy, encode_entry, encode_field, entry, fields, size_of

_AUTHOR = "com.apple.CoreML"
MANIFEST, MODEL, WEIGHTS = "Manifest.json", f"Data/{_AUTHOR}/model.mlmodel", f"Data/{_AUTHOR}/weights/weight.bin"
_DESCRIPTION, _METADATA, _USER_DEFINED = 2, 100, 100
_MAX_DESCRIPTION = 1 << 20  # bytes


def manifest_text() -> str:
    """`Manifest.json` of every package of ours, with UUIDs that are always the same."""
    parts = {"model.mlmodel": "CoreML Model Specification", "weights": "CoreML Model Weights"}
    identifiers = {name: str(uuid5(NAMESPACE_URL, f"stlm-edge/{name}")) for name in parts}
    entries = {
        identifiers[name]: {"author": _AUTHOR, "description": text, "name": name, "path": f"{_AUTHOR}/{name}"}
        for name, text in parts.items()
    }
    value = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": entries,
        "rootModelIdentifier": identifiers["model.mlmodel"],
    }
    return json.dumps(value, indent=4) + "\n"


def check_files(package: str | Path) -> None:
    """Raise UsageError when the folder isn't made of our three files, or its manifest is another one."""
    package = Path(package)
    found = {path.relative_to(package).as_posix() for path in package.rglob("*") if not path.is_dir()}
    found = {path for path in found if not path.rsplit("/", 1)[-1].startswith(".")}
    if found != {MANIFEST, MODEL, WEIGHTS}:
        raise UsageError(
            f"{package}: holds {', '.join(sorted(found))[:200] or 'no files'}; expected {MANIFEST}, {MODEL} and "
            f"{WEIGHTS}; copy it again or export anew"
        )
    with (package / MANIFEST).open("rb") as file:
        if file.read(4096) != manifest_text().encode():
            raise UsageError(f"{package / MANIFEST}: not as stlm-export writes it; copy it again or export anew")


def read_metadata(package: str | Path) -> dict[str, str]:
    """The user-defined metadata. Raises UsageError when the model isn't intact, or holds a key twice."""
    path = Path(package) / MODEL
    try:
        with path.open("rb") as file:
            data, _ = _description(file)
            return _entries(_metadata(data))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except Malformed as problem:
        raise _not_intact(path, problem) from None


def replace_metadata(package: str | Path, entries: dict[str, str]) -> None:
    """Set these metadata entries and keep all others; the model's file is replaced as a whole or not at all.

    Raises UsageError when it isn't intact, OSError when the new one can't be written.
    """
    path = Path(package) / MODEL
    try:
        with path.open("rb") as source, replacing(path) as temporary, temporary.open("wb") as target:
            data, place = _description(source)
            described = _with_metadata(data, entries)
            copy(source, target, 0, place.start)
            target.write(encode_field(_DESCRIPTION, described))
            copy(source, target, place.end, size_of(source))
    except Malformed as problem:
        raise _not_intact(path, problem) from None


def _not_intact(path: Path, problem: Malformed) -> UsageError:
    return UsageError(f"{path}: not an intact Core ML model ({problem}); copy it again or export anew")


def _description(file: BinaryIO) -> tuple[bytes, Field]:
    """The description's bytes and its place in the file."""
    found = [field for field in fields(file, size_of(file)) if field.number == _DESCRIPTION]
    if len(found) != 1 or found[0].wire != BYTES:
        raise Malformed(f"{len(found)} descriptions, expected one")
    (field,) = found
    if field.end - field.content > _MAX_DESCRIPTION:
        raise Malformed(f"a description of {field.end - field.content} bytes, at most {_MAX_DESCRIPTION} are allowed")
    file.seek(field.content)
    return file.read(field.end - field.content), field


def _metadata(description: bytes) -> bytes:
    """The metadata within a description; it may be missing, which protobuf takes for empty."""
    found = [field for field in fields(io.BytesIO(description), len(description)) if field.number == _METADATA]
    if len(found) > 1 or any(field.wire != BYTES for field in found):
        raise Malformed("its metadata stands twice, or is no message")
    return description[found[0].content : found[0].end] if found else b""


def _entries(metadata: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    for field in fields(io.BytesIO(metadata), len(metadata)):
        if field.number == _USER_DEFINED:
            if field.wire != BYTES:
                raise Malformed("a metadata entry is no message")
            key, value = entry(metadata[field.content : field.end])
            if key in found:
                raise Malformed(f"the metadata key {key[:60]!r} stands twice")
            found[key] = value
    return found


def _with_metadata(description: bytes, entries: dict[str, str]) -> bytes:
    metadata = _metadata(description)
    kept = _entries(metadata) | entries
    others = _without(metadata, _USER_DEFINED)
    defined = b"".join(encode_entry(_USER_DEFINED, key, kept[key]) for key in sorted(kept))
    return _without(description, _METADATA) + encode_field(_METADATA, others + defined)


def _without(message: bytes, number: int) -> bytes:
    found = fields(io.BytesIO(message), len(message))
    return b"".join(message[field.start : field.end] for field in found if field.number != number)
