"""Simulate a full disk."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest


class Usage(NamedTuple):
    """Result of `shutil.disk_usage`."""

    total: int
    used: int
    free: int


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let writing fail after so many bytes of a file, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def no_free_space(size: int) -> Iterator[None]:
    """Limit files to `size` bytes, and report that no space is free."""
    usage = Usage(1 << 30, 1 << 30, 0)
    with largest_file(size), pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda folder: usage)
        yield


@contextlib.contextmanager
def leaving_nothing(folder: Path) -> Iterator[None]:
    """Assert that the block leaves nothing in a folder but its `scratch`, which is empty."""
    yield
    assert [path.name for path in folder.iterdir()] == ["scratch"]
    assert list((folder / "scratch").iterdir()) == []
