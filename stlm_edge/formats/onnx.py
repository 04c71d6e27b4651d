"""Reads an ONNX file's metadata, and replaces it, without the onnx package, which a device doesn't have.

An ONNX file is one protobuf message, ModelProto (onnx.proto, github.com/onnx/onnx). Its field 7 is the graph; field 14,
repeated, is `metadata_props`, a StringStringEntryProto of key (1) and value (2). All other fields are passed over, and
copied byte for byte.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from stlm_edge.errors import UsageError
from stlm_edge.files import replacing
from stlm_edge.formats.protobuf import BYTES, Malformed, copy, encode_entry, entry, fields, size_of

_GRAPH, _METADATA = 7, 14
_MAX_METADATA = 1 << 20  # bytes in all
_MAX_DEPTH = 32
_INSIDE = {  # the messages that lead to a TensorProto, by message and field
    "Model": {7: "Graph", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_EXTERNAL_DATA = 13  # of a TensorProto: where else its values stand


def read_metadata(path: str | Path) -> dict[str, str]:
    """The `metadata_props` of an ONNX file. Raises UsageError when it isn't one, or holds a key twice."""
    with _intact(path) as file:
        return _metadata(file)


def check_self_contained(path: str | Path) -> None:
    """Raise UsageError when any tensor of an ONNX file is kept in another file, which could be any on the device."""
    with _intact(path) as file:
        if _has_external_data(file, "Model", size_of(file), 0):
            raise UsageError(
                f"{path}: keeps weights in other files; expected one self-contained ONNX file, export anew"
            )


def replace_metadata(path: str | Path, entries: dict[str, str]) -> None:
    """Set these metadata entries and keep all others; the file is replaced as a whole or not at all.

    Raises UsageError when it isn't an intact ONNX file, OSError when the new one can't be written.
    """
    with _intact(path) as source, replacing(Path(path)) as temporary, temporary.open("wb") as target:
        kept = _metadata(source) | entries
        source.seek(0)
        for field in fields(source, size_of(source)):
            if field.number != _METADATA:
                copy(source, target, field.start, field.end)
        for key, value in kept.items():
            target.write(encode_entry(_METADATA, key, value))


@contextlib.contextmanager
def _intact(path: str | Path) -> Iterator[BinaryIO]:
    try:
        file = Path(path).open("rb")  # noqa: SIM115, closed by the with below
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    with file:
        try:
            yield file
        except Malformed as problem:
            raise UsageError(f"{path}: not an intact ONNX file ({problem}); copy it again or export anew") from None


def _metadata(file: BinaryIO) -> dict[str, str]:
    found: dict[str, str] = {}
    budget, graphs = _MAX_METADATA, 0
    for field in fields(file, size_of(file)):
        graphs += field.number == _GRAPH and field.wire == BYTES
        if field.number == _METADATA:
            budget -= field.end - field.content
            if field.wire != BYTES or budget < 0:
                raise Malformed(f"the metadata at byte {field.start} is no text or larger than {_MAX_METADATA} bytes")
            key, value = entry(file.read(field.end - field.content))
            if key in found:
                raise Malformed(f"the metadata key {key[:60]!r} stands twice")
            found[key] = value
    if graphs != 1:
        raise Malformed(f"{graphs} graphs, expected one")
    return found


def _has_external_data(file: BinaryIO, message: str, end: int, depth: int) -> bool:
    if depth > _MAX_DEPTH:
        raise Malformed(f"graphs nested more than {_MAX_DEPTH} deep")
    for field in fields(file, end):
        if message == "Tensor" and field.number == _EXTERNAL_DATA:
            return True
        inside = _INSIDE[message].get(field.number) if field.wire == BYTES else None
        if inside and _has_external_data(file, inside, field.end, depth + 1):
            return True
    return False
