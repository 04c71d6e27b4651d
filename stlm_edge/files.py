"""Files that are whole or not there."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from stlm_edge.errors import JobError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` to write to; it becomes `path` if the block succeeds, else it is removed."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file, and the folders above it, whole or not at all. Raises JobError when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(text, "utf-8")
    except OSError as error:
        raise JobError(f"{path}: cannot be written ({error.strerror})") from None


def cache_folder() -> Path:
    """Where downloads and answers worth keeping live: stlm-edge/ in the user's cache folder (XDG base directories)."""
    folder = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(folder) if Path(folder).is_absolute() else Path.home() / ".cache") / "stlm-edge"


def sha256_of(source: Path | BinaryIO) -> str:
    """Return the sha256 of a file, or of the rest of an open one, as hexadecimal digits."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            return sha256_of(file)
    digest = hashlib.sha256()
    while chunk := source.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
