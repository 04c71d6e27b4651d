"""The protobuf wire format, as far as reading and rewriting a file's metadata needs it: no package, no schema.

A message is a sequence of fields in any order, each a varint tag (field number × 8 + wire type) and a value:
protobuf.dev/programming-guides/encoding.
"""

import io
import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_CHUNK = 1 << 20


class Malformed(Exception):
    """The bytes are no such message; the text says what and where."""


class Field(NamedTuple):
    """A field's number and wire type, and the places where it starts, its content starts, and it ends."""

    number: int
    wire: int
    start: int
    content: int
    end: int


def fields(file: BinaryIO, end: int) -> Iterator[Field]:
    """The fields from the file's place to `end`; at each, the file stands at its content. Raises Malformed."""
    start = file.tell()
    while start < end:
        field = _read_field(file, start)
        if field.end > end:
            raise Malformed(f"the field at byte {start} reaches beyond byte {end}")
        yield field
        start = file.seek(field.end)


def entry(data: bytes) -> tuple[str, str]:
    """Key (field 1) and value (2) of an entry of strings; either may be missing, which protobuf takes for empty."""
    parts, file = {1: "", 2: ""}, io.BytesIO(data)
    for field in fields(file, len(data)):
        if field.number not in parts or field.wire != BYTES:
            raise Malformed("a metadata entry is not a key and a value")
        try:
            parts[field.number] = data[field.content : field.end].decode()
        except UnicodeDecodeError:
            raise Malformed("a metadata entry is not UTF-8") from None
    return parts[1], parts[2]


def encode_entry(number: int, key: str, value: str) -> bytes:
    """An entry of strings as field `number`."""
    return encode_field(number, encode_field(1, key.encode()) + encode_field(2, value.encode()))


def encode_field(number: int, content: bytes) -> bytes:
    """Bytes, a text or a message as field `number`."""
    return _encode(number << 3 | BYTES) + _encode(len(content)) + content


def encode_number(number: int, value: int) -> bytes:
    """A whole number that isn't negative, as field `number`."""
    return _encode(number << 3 | VARINT) + _encode(value)


def copy(source: BinaryIO, target: BinaryIO, start: int, end: int) -> None:
    """The source's bytes from `start` to `end`, a piece at a time."""
    source.seek(start)
    for position in range(start, end, _CHUNK):
        target.write(source.read(min(_CHUNK, end - position)))


def size_of(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _read_field(file: BinaryIO, start: int) -> Field:
    tag = _varint(file)
    number, wire = tag >> 3, tag & 7
    if number == 0 or number >= 1 << 29 or wire not in (VARINT, FIXED64, BYTES, FIXED32):
        raise Malformed(f"no field begins at byte {start}")
    if wire == BYTES:
        length = _varint(file)
        return Field(number, wire, start, file.tell(), file.tell() + length)
    content = file.tell()
    if wire == VARINT:
        _varint(file)
        return Field(number, wire, start, content, file.tell())
    return Field(number, wire, start, content, content + (8 if wire == FIXED64 else 4))


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise Malformed("it ends in the middle of a number")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise Malformed(f"the number before byte {file.tell()} is too long")


def _encode(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(encoded) + bytes([value])
