"""Checks shared by all formats: files that are missing, unreadable or damaged become one line that names them."""

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from stlm_edge.errors import UsageError

Bytes = bytes | mmap.mmap


class Malformed(Exception):
    """Bytes that do not follow the format. The message says what is wrong and where."""


@contextlib.contextmanager
def mapped(path: str | Path, kind: str) -> Iterator[Bytes]:
    """Map a file of the named kind, such as "ONNX file", into memory.

    Raises UsageError when the file cannot be read, or the block raises Malformed.
    """
    try:
        with Path(path).open("rb") as file:
            is_empty = os.fstat(file.fileno()).st_size == 0
            data = b"" if is_empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        yield data
    except Malformed as problem:
        raise UsageError(f"{path}: not an intact {kind} ({problem}); copy it again or export again") from None


def check_files(folder: str | Path, *expected: str) -> None:
    """Raise UsageError unless a folder holds exactly the expected files, not counting hidden ones."""
    paths = [path for path in Path(folder).rglob("*") if not path.is_dir() and not path.name.startswith(".")]
    found = sorted(path.relative_to(folder).as_posix() for path in paths)
    if found != sorted(expected):
        held = ", ".join(found)[:200] or "no files"
        raise UsageError(f"{folder}: holds {held}; expected {', '.join(expected)}; copy it again or export again")
