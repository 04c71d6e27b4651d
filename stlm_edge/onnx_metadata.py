"""Reads and replaces the metadata of an ONNX file without the onnx package, which a device doesn't have.

An ONNX file is one protobuf message, ModelProto (onnx.proto, github.com/onnx/onnx): a sequence of fields in any order,
each a varint tag (field number × 8 + wire type) and a value. Field 7 is the graph; field 14, repeated, is
`metadata_props`, a StringStringEntryProto of key (1) and value (2). All other fields are passed over, and copied byte
for byte. Wire format: protobuf.dev/programming-guides/encoding.
"""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from stlm_edge.errors import UsageError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_GRAPH, _METADATA = 7, 14
_MAX_METADATA = 1 << 20  # bytes in all
_CHUNK = 1 << 20


class _Malformed(Exception):
    pass


def read_metadata(path: str | Path) -> dict[str, str]:
    """The `metadata_props` of an ONNX file. Raises UsageError when it isn't one, or holds a key twice."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            return dict(_entry(data) for _, data in _fields(file) if data is not None)
    except _Malformed as problem:
        raise UsageError(f"{path}: not an intact ONNX file ({problem}); copy it again or export anew") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None


def replace_metadata(path: str | Path, entries: dict[str, str]) -> None:
    """Set these metadata entries and keep all others; the file is replaced as a whole or not at all.

    Raises UsageError when it isn't an intact ONNX file, OSError when the new one can't be written.
    """
    path = Path(path)
    kept = read_metadata(path) | entries
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with path.open("rb") as source, temporary.open("xb") as target:
            for (start, end), data in list(_fields(source)):
                if data is None:
                    _copy(source, target, start, end)
            for key, value in kept.items():
                body = _field(1, key.encode()) + _field(2, value.encode())
                target.write(_field(_METADATA, body))
            target.flush()
            os.fsync(target.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _fields(file: BinaryIO) -> Iterator[tuple[tuple[int, int], bytes | None]]:
    """Each top-level field as its byte range, with the content of metadata entries (None for other fields)."""
    size = os.fstat(file.fileno()).st_size
    position, budget, graphs, keys = 0, _MAX_METADATA, 0, set()
    while position < size:
        start = position
        number, wire, length = _header(file)
        position = file.tell() + length
        if position > size:
            raise _Malformed(f"the field at byte {start} reaches beyond the file's {size} bytes")
        if number == _METADATA:
            budget -= length
            if wire != _BYTES or budget < 0:
                raise _Malformed(f"the metadata at byte {start} is no text or larger than {_MAX_METADATA} bytes")
            data = file.read(length)
            if (key := _entry(data)[0]) in keys:
                raise _Malformed(f"the metadata key {key[:60]!r} stands twice")
            keys.add(key)
            yield (start, position), data
        else:
            graphs += number == _GRAPH and wire == _BYTES
            yield (start, position), None
        file.seek(position)
    if graphs != 1:
        raise _Malformed(f"{graphs} graphs, expected one")


def _header(file: BinaryIO) -> tuple[int, int, int]:
    """Field number, wire type and the bytes that its value takes after here."""
    start = file.tell()
    tag = _varint(file)
    number, wire = tag >> 3, tag & 7
    if number == 0 or number >= 1 << 29 or wire not in (_VARINT, _FIXED64, _BYTES, _FIXED32):
        raise _Malformed(f"no field begins at byte {start}")
    if wire == _VARINT:
        _varint(file)
        return number, wire, 0
    return number, wire, _varint(file) if wire == _BYTES else {_FIXED64: 8, _FIXED32: 4}[wire]


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


def _entry(data: bytes) -> tuple[str, str]:
    """Key and value of a StringStringEntryProto; either may be missing, which protobuf takes for empty."""
    parts, file = {1: "", 2: ""}, io.BytesIO(data)
    while file.tell() < len(data):
        number, wire, length = _header(file)
        content = file.read(length)
        if number not in parts or wire != _BYTES or len(content) != length:
            raise _Malformed("a metadata entry is not a key and a value")
        try:
            parts[number] = content.decode()
        except UnicodeDecodeError:
            raise _Malformed("a metadata entry is not UTF-8") from None
    return parts[1], parts[2]


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
