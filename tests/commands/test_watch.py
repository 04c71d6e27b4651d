"""Arriving images: each once, and only when it is complete."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import tiny_image

from stlm_edge.commands.watch import arrivals
from stlm_edge.errors import JobError, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "incoming").mkdir()
    return tmp_path / "incoming"


def names(watching: Iterator[Path], count: int) -> list[str]:
    return [next(watching).name for _ in range(count)]


def test_those_there_come_first_oldest_first_then_those_that_arrive(folder: Path) -> None:
    for name in ("b.png", "a.png"):
        tiny_image(1).save(folder / name)
        time.sleep(0.02)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "folder.png").mkdir()
    watching = arrivals(folder, poll_seconds=0.01)
    assert names(watching, 2) == ["b.png", "a.png"]
    tiny_image(2).save(folder / "c.png")
    assert names(watching, 1) == ["c.png"]


def test_a_file_is_awaited_until_it_is_complete(folder: Path, tmp_path: Path) -> None:
    tiny_image(1).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    parts = [content[start : start + 1000] for start in range(0, len(content), 1000)]

    def write_slowly() -> None:
        with (folder / "slow.png").open("wb", buffering=0) as file:
            time.sleep(0.3)  # empty for longer than the watch waits
            for part in parts:
                file.write(part)
                time.sleep(0.02)

    writer = threading.Thread(target=write_slowly)
    writer.start()
    arrived = next(arrivals(folder, poll_seconds=0.1))
    assert arrived.read_bytes() == content
    writer.join()


def test_an_image_written_again_is_another_image(folder: Path) -> None:
    tiny_image(1).save(folder / "frame.png")
    watching = arrivals(folder, poll_seconds=0.01)
    assert names(watching, 1) == ["frame.png"]
    time.sleep(0.02)
    tiny_image(2).save(folder / "frame.png")
    tiny_image(2).save(folder / "other.png")
    assert sorted(names(watching, 2)) == ["frame.png", "other.png"]


def test_a_missing_folder_is_refused_and_a_vanished_one_ends_the_watch(folder: Path) -> None:
    with pytest.raises(UsageError, match="no such folder to watch"):
        next(arrivals(folder / "nowhere"))
    tiny_image(1).save(folder / "a.png")
    watching = arrivals(folder, poll_seconds=0.01)
    next(watching)
    (folder / "a.png").unlink()
    folder.rmdir()
    with pytest.raises(JobError, match="can no longer be watched"):
        next(watching)
