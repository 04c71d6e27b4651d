"""Reads a TFLite file's metadata, and replaces it, without the flatbuffers package, which a device doesn't have.

A .tflite file is one FlatBuffer (flatbuffers.dev/internals) whose root is the table Model (schema.fbs,
github.com/google-ai-edge/LiteRT): field 2 `subgraphs`, 4 `buffers`, 6 `metadata`, a vector of tables of a name (0) and
a buffer's number (1), 9 `external_buffers`; a Buffer has its `data` (0), or an offset (1) beyond the FlatBuffer. Ours
is named METADATA_NAME. Its data are a JSON object of strings in UTF-8, padded with spaces, so that another value fits
without moving a byte of the rest, and any JSON parser on a phone reads the buffer as it is.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from stlm_edge.errors import UsageError
from stlm_edge.files import replacing

METADATA_NAME = "stlm_edge"
IDENTIFIER = b"TFL3"
MAX_METADATA = 1 << 20  # bytes
_MAX_ENTRIES = 64  # metadata of a file, of whoever's
_MAX_BUFFERS = 1 << 20
_SUBGRAPHS, _BUFFERS, _METADATA, _EXTERNAL_BUFFERS = 2, 4, 6, 9
_NAME, _BUFFER = 0, 1
_DATA, _OFFSET = 0, 1


class _Malformed(Exception):
    pass


def read_metadata(path: str | Path) -> dict[str, str]:
    """Our entries in a TFLite file, none where it has no such buffer. Raises UsageError when it isn't intact."""
    with _intact(path) as file:
        place = _find(file)
        return {} if place is None else _entries(file, *place)


def check_self_contained(path: str | Path) -> None:
    """Raise UsageError when weights are kept outside the FlatBuffer: in other files, or behind it."""
    with _intact(path) as file:
        model = _root(file)
        outside = _field(file, model, _EXTERNAL_BUFFERS) is not None or any(
            _field(file, buffer, _OFFSET) is not None for buffer in _tables(file, model, _BUFFERS, _MAX_BUFFERS)
        )
    if outside:
        raise UsageError(
            f"{path}: keeps weights outside its FlatBuffer; expected one self-contained TFLite file, export anew"
        )


def replace_metadata(path: str | Path, entries: dict[str, str]) -> None:
    """Set these entries of ours and keep all others; the file is replaced as a whole or not at all.

    Raises UsageError when it isn't an intact TFLite file with room for them, OSError when it can't be written.
    """
    with _intact(path) as source:
        place = _find(source)
        if place is None:
            raise UsageError(f"{path}: holds no metadata of ours, expected a buffer {METADATA_NAME!r}; export anew")
        start, room = place
        content = encode(_entries(source, start, room) | entries)
        if len(content) > room:
            raise UsageError(f"{path}: has room for {room} bytes of metadata, these take {len(content)}; export anew")
        with replacing(Path(path)) as temporary, temporary.open("wb") as target:
            source.seek(0)
            shutil.copyfileobj(source, target)
            target.seek(start)
            target.write(content.ljust(room))


def encode(entries: dict[str, str]) -> bytes:
    """The buffer's content before the padding."""
    return json.dumps(entries, ensure_ascii=False, sort_keys=True).encode()


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
            raise UsageError(f"{path}: not an intact TFLite file ({problem}); copy it again or export anew") from None


def _find(file: BinaryIO) -> tuple[int, int] | None:
    """Where the data of our buffer begin, and how many bytes they are."""
    model = _root(file)
    numbers = [
        _number(file, field) if (field := _field(file, entry, _BUFFER)) is not None else 0
        for entry in _tables(file, model, _METADATA, _MAX_ENTRIES)
        if _is_ours(file, entry)
    ]
    if not numbers:
        return None
    if len(numbers) > 1:
        raise _Malformed(f"the metadata {METADATA_NAME!r} stands {len(numbers)} times")
    buffers = list(_tables(file, model, _BUFFERS, _MAX_BUFFERS, only=numbers[0]))
    data = _field(file, buffers[0], _DATA) if buffers else None
    if data is None:
        raise _Malformed(f"buffer {numbers[0]}, which the metadata names, is not there or empty")
    start, length = _vector(file, data, item=1)
    if length > MAX_METADATA:
        raise _Malformed(f"{length} bytes of metadata, at most {MAX_METADATA} are allowed")
    return start, length


def _is_ours(file: BinaryIO, entry: int) -> bool:
    field = _field(file, entry, _NAME)
    if field is None:
        return False
    start, length = _vector(file, field, item=1)
    return length == len(METADATA_NAME) and _bytes(file, start, length) == METADATA_NAME.encode()


def _entries(file: BinaryIO, start: int, length: int) -> dict[str, str]:
    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(pairs)) < len(pairs):
            raise _Malformed("a metadata key stands twice")
        return dict(pairs)

    try:
        found = json.loads(_bytes(file, start, length).decode(), object_pairs_hook=once)
    except (ValueError, RecursionError):
        raise _Malformed(f"the metadata at byte {start} are not JSON in UTF-8") from None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise _Malformed(f"the metadata at byte {start} are not an object of strings")
    return found


def _root(file: BinaryIO) -> int:
    """The place of the table Model, which must have a graph."""
    if _bytes(file, 4, 4) != IDENTIFIER:
        raise _Malformed(f"it does not say {IDENTIFIER.decode()} at byte 4")
    model = _number(file, 0)
    if not list(_tables(file, model, _SUBGRAPHS, _MAX_BUFFERS, only=0)):
        raise _Malformed("it has no graph")
    return model


def _tables(file: BinaryIO, table: int, field: int, most: int, only: int | None = None) -> Iterator[int]:
    """The places of the tables in a vector of a table, or of the one of number `only`."""
    place = _field(file, table, field)
    if place is None:
        return
    start, count = _vector(file, place, item=4)
    if count > most:
        raise _Malformed(f"{count} entries at byte {start}, at most {most} are expected")
    for index in range(count) if only is None else range(only, min(only + 1, count)):
        yield _forward(file, start + 4 * index)


def _field(file: BinaryIO, table: int, number: int) -> int | None:
    """Where a table's field stands; None where it has its default."""
    vtable = table - _number(file, table, signed=True)
    size = _number(file, vtable, 2)
    if 4 + 2 * number + 2 > size:
        return None
    offset = _number(file, vtable + 4 + 2 * number, 2)
    return table + offset if offset else None


def _vector(file: BinaryIO, field: int, item: int) -> tuple[int, int]:
    """The first item's place and the count of a vector, or string, that lies wholly inside the file."""
    start = _forward(file, field)
    count = _number(file, start)
    if start + 4 + count * item > _size(file):
        raise _Malformed(f"the {count} items at byte {start} reach beyond the file's end")
    return start + 4, count


def _forward(file: BinaryIO, place: int) -> int:
    offset = _number(file, place)
    if not offset:
        raise _Malformed(f"the offset at byte {place} is 0")
    return place + offset


def _number(file: BinaryIO, place: int, width: int = 4, signed: bool = False) -> int:
    return int.from_bytes(_bytes(file, place, width), "little", signed=signed)


def _bytes(file: BinaryIO, place: int, length: int) -> bytes:
    if not 0 <= place <= _size(file) - length:
        raise _Malformed(f"byte {place} is outside the file")
    file.seek(place)
    return file.read(length)


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size
