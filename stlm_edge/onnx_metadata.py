"""Reads an ONNX file's metadata, and replaces it, without the onnx package, which a device doesn't have.

An ONNX file is one protobuf message, ModelProto (onnx.proto, github.com/onnx/onnx): a sequence of fields in any order,
each a varint tag (field number × 8 + wire type) and a value. Field 7 is the graph; field 14, repeated, is
`metadata_props`, a StringStringEntryProto of key (1) and value (2). All other fields are passed over, and copied byte
for byte. Wire format: protobuf.dev/programming-guides/encoding.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from stlm_edge.errors import UsageError
from stlm_edge.files import replacing

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_GRAPH, _METADATA = 7, 14
_MAX_METADATA = 1 << 20  # bytes in all
_MAX_DEPTH = 32
_CHUNK = 1 << 20
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


class _Malformed(Exception):
    pass


class _Field(NamedTuple):
    """A field's number and wire type, and the places where it starts, its content starts, and it ends."""

    number: int
    wire: int
    start: int
    content: int
    end: int


def read_metadata(path: str | Path) -> dict[str, str]:
    """The `metadata_props` of an ONNX file. Raises UsageError when it isn't one, or holds a key twice."""
    with _intact(path) as file:
        return _metadata(file)


def check_self_contained(path: str | Path) -> None:
    """Raise UsageError when any tensor of an ONNX file is kept in another file, which could be any on the device."""
    with _intact(path) as file:
        if _has_external_data(file, "Model", _size(file), 0):
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
        for field in _fields(source, _size(source)):
            if field.number != _METADATA:
                _copy(source, target, field.start, field.end)
        for key, value in kept.items():
            target.write(_field(_METADATA, _field(1, key.encode()) + _field(2, value.encode())))


@contextlib.contextmanager
def _intact(path: str | Path) -> Iterator[BinaryIO]:
    try:
        file = Path(path).open("rb")  # noqa: SIM115, closed by the with below
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    with file:
        try:
            yield file
        except _Malformed as problem:
            raise UsageError(f"{path}: not an intact ONNX file ({problem}); copy it again or export anew") from None


def _metadata(file: BinaryIO) -> dict[str, str]:
    found: dict[str, str] = {}
    budget, graphs = _MAX_METADATA, 0
    for field in _fields(file, _size(file)):
        graphs += field.number == _GRAPH and field.wire == _BYTES
        if field.number == _METADATA:
            budget -= field.end - field.content
            if field.wire != _BYTES or budget < 0:
                raise _Malformed(f"the metadata at byte {field.start} is no text or larger than {_MAX_METADATA} bytes")
            key, value = _entry(file.read(field.end - field.content))
            if key in found:
                raise _Malformed(f"the metadata key {key[:60]!r} stands twice")
            found[key] = value
    if graphs != 1:
        raise _Malformed(f"{graphs} graphs, expected one")
    return found


def _has_external_data(file: BinaryIO, message: str, end: int, depth: int) -> bool:
    if depth > _MAX_DEPTH:
        raise _Malformed(f"graphs nested more than {_MAX_DEPTH} deep")
    for field in _fields(file, end):
        if message == "Tensor" and field.number == _EXTERNAL_DATA:
            return True
        inside = _INSIDE[message].get(field.number) if field.wire == _BYTES else None
        if inside and _has_external_data(file, inside, field.end, depth + 1):
            return True
    return False


def _fields(file: BinaryIO, end: int) -> Iterator[_Field]:
    """The fields from the file's place to `end`; at each, the file stands at its content."""
    start = file.tell()
    while start < end:
        field = _read_field(file, start)
        if field.end > end:
            raise _Malformed(f"the field at byte {start} reaches beyond byte {end}")
        yield field
        start = file.seek(field.end)


def _read_field(file: BinaryIO, start: int) -> _Field:
    tag = _varint(file)
    number, wire = tag >> 3, tag & 7
    if number == 0 or number >= 1 << 29 or wire not in (_VARINT, _FIXED64, _BYTES, _FIXED32):
        raise _Malformed(f"no field begins at byte {start}")
    if wire == _BYTES:
        length = _varint(file)
        return _Field(number, wire, start, file.tell(), file.tell() + length)
    content = file.tell()
    if wire == _VARINT:
        _varint(file)
        return _Field(number, wire, start, content, file.tell())
    return _Field(number, wire, start, content, content + (8 if wire == _FIXED64 else 4))


def _entry(data: bytes) -> tuple[str, str]:
    """Key and value of a StringStringEntryProto; either may be missing, which protobuf takes for empty."""
    parts, file = {1: "", 2: ""}, io.BytesIO(data)
    for field in _fields(file, len(data)):
        if field.number not in parts or field.wire != _BYTES:
            raise _Malformed("a metadata entry is not a key and a value")
        try:
            parts[field.number] = data[field.content : field.end].decode()
        except UnicodeDecodeError:
            raise _Malformed("a metadata entry is not UTF-8") from None
    return parts[1], parts[2]


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise _Malformed("it ends in the middle of a number")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise _Malformed(f"the number before byte {file.tell()} is too long")


def _field(number: int, content: bytes) -> bytes:
    return _encode(number << 3 | _BYTES) + _encode(len(content)) + content


def _encode(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(encoded) + bytes([value])


def _copy(source: BinaryIO, target: BinaryIO, start: int, end: int) -> None:
    source.seek(start)
    for position in range(start, end, _CHUNK):
        target.write(source.read(min(_CHUNK, end - position)))
