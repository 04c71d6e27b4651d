"""Files are written whole or not at all."""

import threading
from pathlib import Path

import pytest

from stlm_edge.errors import JobError
from stlm_edge.files import replacing, write_text


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_bytes(bytes(1 // 0))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_concurrent_writers_leave_one_of_their_files_whole(tmp_path: Path) -> None:
    path, both_open = tmp_path / "engine.bin", threading.Barrier(2)

    def write(content: bytes) -> None:
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.write(content[: len(content) // 2])
            both_open.wait(10)
            file.write(content[len(content) // 2 :])

    writers = [threading.Thread(target=write, args=(letter * size,)) for letter, size in ((b"A", 3000), (b"B", 5000))]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_bytes() in (b"A" * 3000, b"B" * 5000)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["n" * 255, "图" * 85])
def test_longest_file_names_can_be_written(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text"


def test_unwritable_folder_is_a_failed_job_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(JobError, match=r"file/report\.html: cannot be written"):
        write_text(tmp_path / "file" / "report.html", "text")
