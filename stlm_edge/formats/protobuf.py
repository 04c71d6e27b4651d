"""A reader of the protobuf wire format, as far as metadata needs it, without a package or schema.

A message is a sequence of fields in any order, each a varint tag (field number × 8 + wire type) and a value:
protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator
from typing import NamedTuple

from stlm_edge.formats.intact import Bytes, Malformed

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_MAX_STRINGS = 1 << 20  # bytes


class Field(NamedTuple):
    """A field's number and wire type, and the range of bytes that hold its value."""

    number: int
    wire: int
    start: int
    end: int


def fields(data: Bytes, start: int = 0, end: int | None = None) -> Iterator[Field]:
    """Yield the fields of the message in data[start:end]. Raises Malformed."""
    end = len(data) if end is None else end
    while start < end:
        tag, content = _varint(data, start)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29 or wire not in (VARINT, FIXED64, BYTES, FIXED32):
            raise Malformed(f"no field begins at byte {start}")
        if wire == VARINT:
            _, stop = _varint(data, content)
        elif wire == BYTES:
            length, content = _varint(data, content)
            stop = content + length
        else:
            stop = content + (8 if wire == FIXED64 else 4)
        if stop > end:
            raise Malformed(f"the field at byte {start} reaches beyond byte {end}")
        yield Field(number, wire, content, stop)
        start = stop


def messages(data: Bytes, number: int, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
    """Return the byte ranges of the messages stored as field `number` of the message in data[start:end]."""
    found = [field for field in fields(data, start, end) if field.number == number]
    if any(field.wire != BYTES for field in found):
        raise Malformed(f"field {number} is not a message")
    return [(field.start, field.end) for field in found]


def string_map(data: Bytes, number: int, start: int = 0, end: int | None = None) -> dict[str, str]:
    """Return the map<string, string> stored as field `number`: entries of key (field 1) and value (field 2)."""
    strings: dict[str, str] = {}
    entries = messages(data, number, start, end)
    if sum(stop - begin for begin, stop in entries) > _MAX_STRINGS:
        raise Malformed(f"metadata larger than {_MAX_STRINGS} bytes")
    for begin, stop in entries:
        entry = {1: "", 2: ""}  # a field that is missing is empty
        for field in fields(data, begin, stop):
            if field.number not in entry or field.wire != BYTES:
                raise Malformed("a metadata entry is not a key and a value")
            try:
                entry[field.number] = data[field.start : field.end].decode()
            except UnicodeDecodeError:
                raise Malformed("a metadata entry is not UTF-8") from None
        if entry[1] in strings:
            raise Malformed(f"duplicate metadata key {entry[1][:60]!r}")
        strings[entry[1]] = entry[2]
    return strings


def _varint(data: Bytes, start: int) -> tuple[int, int]:
    """Return the number at `start` and the position after it."""
    value = 0
    for index, shift in enumerate(range(0, 70, 7), start):
        if index >= len(data):
            raise Malformed("the file ends in the middle of a number")
        value |= (data[index] & 0x7F) << shift
        if data[index] < 0x80:
            return value, index + 1
    raise Malformed(f"the number at byte {start} is too long")
