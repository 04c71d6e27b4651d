"""A TFLite file's metadata, read without the flatbuffers package, which devices do not have.

A .tflite file is one FlatBuffer (flatbuffers.dev/internals) whose root is the table Model (schema.fbs,
github.com/google-ai-edge/LiteRT). Our metadata is its entry METADATA_NAME, a JSON object of strings in UTF-8.
"""

from pathlib import Path

from stlm_edge import strict_json
from stlm_edge.errors import UsageError
from stlm_edge.formats.intact import Bytes, Malformed, mapped

METADATA_NAME = "stlm_edge"
IDENTIFIER = b"TFL3"
_MAX_METADATA = 1 << 20  # bytes
_MAX_ENTRIES = 64  # metadata entries of any name
_MAX_BUFFERS = 1 << 20
_SUBGRAPHS, _BUFFERS, _METADATA, _EXTERNAL_BUFFERS = 2, 4, 6, 9  # fields of Model
_NAME, _BUFFER = 0, 1  # of Metadata
_DATA, _OFFSET = 0, 1  # of Buffer; the offset is beyond the FlatBuffer


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the entries of METADATA_NAME, none where it is missing. Raises UsageError for a damaged file."""
    with mapped(path, "TFLite file") as data:
        content = _content(data)
        entries = strict_json.parse(content, f"{path}: metadata") if content is not None else {}
        if not isinstance(entries, dict) or not all(isinstance(value, str) for value in entries.values()):
            raise Malformed("the metadata is not an object of strings")
        return entries


def check_self_contained(path: str | Path) -> None:
    """Raise UsageError if weights are outside the FlatBuffer: in other files, or behind it."""
    with mapped(path, "TFLite file") as data:
        model = _root(data)
        buffers = _tables(data, model, _BUFFERS, _MAX_BUFFERS)
        is_outside = any(_field(data, _follow(data, place), _OFFSET) is not None for place in buffers)
        if is_outside or _field(data, model, _EXTERNAL_BUFFERS) is not None:
            raise UsageError(f"{path}: keeps weights outside its FlatBuffer, expected none; export again")


def _content(data: Bytes) -> bytes | None:
    """Return the data of the buffer that METADATA_NAME refers to."""
    model = _root(data)
    numbers = []
    for place in _tables(data, model, _METADATA, _MAX_ENTRIES):
        entry = _follow(data, place)
        name = _field(data, entry, _NAME)
        if name is not None and _string(data, name) == METADATA_NAME.encode():
            number = _field(data, entry, _BUFFER)
            numbers.append(0 if number is None else _number(data, number))
    if not numbers:
        return None
    if len(numbers) > 1:
        raise Malformed(f"duplicate metadata {METADATA_NAME!r}")
    buffers = _tables(data, model, _BUFFERS, _MAX_BUFFERS)
    field = _field(data, _follow(data, buffers[numbers[0]]), _DATA) if numbers[0] < len(buffers) else None
    if field is None:
        raise Malformed(f"buffer {numbers[0]}, which the metadata names, is missing or empty")
    return _string(data, field)


def _root(data: Bytes) -> int:
    if data[4:8] != IDENTIFIER:
        raise Malformed(f"no {IDENTIFIER.decode()} at byte 4")
    model = _follow(data, 0)
    graphs = _tables(data, model, _SUBGRAPHS, _MAX_BUFFERS)
    if not graphs:
        raise Malformed("it has no graph")
    _follow(data, graphs[0])
    return model


def _tables(data: Bytes, table: int, field: int, limit: int) -> range:
    """Return where a table's vector holds the offset of each of its tables."""
    position = _field(data, table, field)
    if position is None:
        return range(0)
    start, count = _vector(data, position, 4)
    if count > limit:
        raise Malformed(f"{count} entries at byte {start}, at most {limit} are expected")
    return range(start, start + 4 * count, 4)


def _field(data: Bytes, table: int, number: int) -> int | None:
    """Return the position of a table's field, None where it has its default."""
    vtable = table - _number(data, table, signed=True)
    if 4 + 2 * number + 2 > _number(data, vtable, 2):
        return None
    offset = _number(data, vtable + 4 + 2 * number, 2)
    return table + offset if offset else None


def _string(data: Bytes, field: int) -> bytes:
    start, length = _vector(data, field, 1)
    if length > _MAX_METADATA:
        raise Malformed(f"{length} bytes of metadata, at most {_MAX_METADATA} are allowed")
    return data[start : start + length]


def _vector(data: Bytes, field: int, item: int) -> tuple[int, int]:
    """Return the position of a vector's first item, and how many items of `item` bytes it has."""
    start = _follow(data, field)
    count = _number(data, start)
    if start + 4 + count * item > len(data):
        raise Malformed(f"the {count} items at byte {start} reach beyond the end of the file")
    return start + 4, count


def _follow(data: Bytes, position: int) -> int:
    offset = _number(data, position)
    if not offset:
        raise Malformed(f"the offset at byte {position} is 0")
    return position + offset


def _number(data: Bytes, position: int, width: int = 4, signed: bool = False) -> int:
    if not 0 <= position <= len(data) - width:
        raise Malformed(f"byte {position} is outside the file")
    return int.from_bytes(data[position : position + width], "little", signed=signed)
