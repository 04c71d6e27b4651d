"""Atomic writes, the cache folder and checksums."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from stlm_edge.errors import JobError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path` to write a file to.

    The file is flushed to disk and replaces `path` when the block succeeds; otherwise it is removed. Temporary names
    are unique: of several concurrent writers, the last one wins with its complete file.
    """
    temporary = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.part")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically, creating its parent folders. Raises JobError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(text, "utf-8")
    except OSError as error:
        raise JobError(f"{path}: cannot be written ({error.strerror})") from None


def cache_folder() -> Path:
    """Return stlm-edge/ in the user's cache folder (XDG base directories), for downloads and cached features."""
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
