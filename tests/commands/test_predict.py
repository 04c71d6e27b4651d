"""stlm-predict: verdicts, heatmaps, error lines and the watched folder."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from disk_full import largest_file
from in_process import Finished, run_main
from PIL import Image
from tiny import tiny_image

import stlm_edge
from stlm_edge.commands import predict
from stlm_edge.commands.predict import arrivals
from stlm_edge.errors import JobError, UsageError

Run = Callable[..., Finished]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    tiny_image(1).save(folder / "good.png")
    tiny_image(305, defect=True).save(folder / "spot.jpg")
    tiny_image(306, defect=True).save(folder / "more" / "good.png")
    (folder / "more" / "damaged.png").write_bytes((folder / "good.png").read_bytes()[:200])
    return folder


@pytest.fixture
def run(tiny_bundle: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return stlm-predict with the tiny bundle, in the folder of images."""
    monkeypatch.chdir(images)
    return lambda *arguments: run_main(predict.main, ["--bundle", tiny_bundle, *arguments], capsys)


def test_each_image_gets_a_line(run: Run, tiny_bundle: Path) -> None:
    finished = run("good.png", "spot.jpg")
    threshold = stlm_edge.open(tiny_bundle).manifest.decision_threshold.value
    assert (finished.returncode, finished.stderr) == (0, "")
    first, second = finished.stdout.splitlines()
    assert first.split() == ["normal", "score", first.split()[2], "threshold", f"{threshold:.4f}", "good.png"]
    assert second.split()[0] == "ANOMALOUS"
    assert second.endswith("spot.jpg")


def test_json_agrees_with_the_python_interface(run: Run, tiny_bundle: Path, images: Path) -> None:
    finished = run("good.png", "spot.jpg", "--json", "--threads", 1)
    bundle = stlm_edge.open(tiny_bundle)
    for line, name in zip(finished.stdout.splitlines(), ["good.png", "spot.jpg"], strict=True):
        verdict = bundle.predict(images / name)
        assert json.loads(line) == {
            "image": name,
            "anomalous": verdict.anomalous,
            "score": pytest.approx(verdict.score, abs=1e-6),
            "threshold": verdict.threshold,
            "heatmap": None,
        }


def test_folders_and_patterns_give_each_image_once(run: Run, images: Path) -> None:
    (images / "more" / "damaged.png").unlink()
    finished = run(".", "more/*.png", "**/good.png", "--json")
    assert [json.loads(line)["image"] for line in finished.stdout.splitlines()] == [
        "good.png",
        "spot.jpg",
        "more/good.png",
    ]
    absolute = run(f"{images}/*.jpg", "--json")
    assert json.loads(absolute.stdout)["image"] == str(images / "spot.jpg")


def test_file_whose_name_looks_like_a_pattern_is_judged(run: Run, images: Path) -> None:
    (images / "good.png").rename(images / "part[1].png")
    assert run("part[1].png").returncode == 0


def test_heatmap_has_the_image_s_size_and_shows_the_defect(run: Run, images: Path) -> None:
    (images / "more" / "damaged.png").unlink()
    finished = run("spot.jpg", "good.png", "more", "--out", "out/heatmaps", "--json")
    assert finished.returncode == 0
    written = [json.loads(line)["heatmap"] for line in finished.stdout.splitlines()]
    assert written == [f"out/heatmaps/{n}.heatmap.png" for n in ("spot.jpg", "0002-good.png", "0003-good.png")]
    assert sorted(path.name for path in (images / "out/heatmaps").iterdir()) == sorted(Path(w).name for w in written)
    shown, original = Image.open(images / written[0]), Image.open(images / "spot.jpg")
    assert shown.size == original.size
    changed = np.abs(np.asarray(shown, int) - np.asarray(original, int)).max(axis=2)
    assert changed[36:54, 26:44].mean() > 25  # on the spot
    assert changed[:, 60:].mean() < 10


def test_bad_image_does_not_stop_the_others(run: Run, images: Path) -> None:
    finished = run("missing.png", "more", "good.png")
    assert finished.returncode == 1
    assert len(finished.stdout.splitlines()) == 2
    errors = finished.stderr.splitlines()
    assert errors[0].startswith("error: missing.png: no such file")
    assert errors[1].startswith("error: more/damaged.png: ")
    assert errors[2:] == ["error: 2 of 4 images could not be judged"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["missing.png"], "missing.png: no such file"),
        (["more/damaged.png"], "more/damaged.png: truncated"),
        (["*.tiff"], "*.tiff: no file matches this pattern"),
        (["out"], "out: no images in it"),
        (["good.png", "--out", "spot.jpg"], "spot.jpg: a file; --out expects a folder"),
        (["more", "--out", "more"], "more: --out holds the images"),
        (["--watch", "more", "--out", "more"], "more: --out holds the images"),
        (["--watch", "nowhere"], "nowhere: no such folder to watch"),
        (["good.png", "--threads", "0"], "threads: found 0"),
    ],
)
def test_unusable_arguments_get_one_line(run: Run, images: Path, arguments: list[str], line: str) -> None:
    (images / "out").mkdir()
    before = sorted(images.rglob("*"))
    finished = run(*arguments)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.startswith(f"error: {line}")
    assert finished.stderr.count("\n") == 1
    assert sorted(images.rglob("*")) == before


def test_full_disk_is_one_line_and_leaves_no_partial_heatmap(run: Run, images: Path) -> None:
    with largest_file(4096):
        finished = run("good.png", "--out", "out")
    assert (finished.returncode, finished.stderr) == (1, "error: out/good.png.heatmap.png: File too large\n")
    assert list((images / "out").iterdir()) == []


def test_image_and_model_are_required(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    finished = run()
    assert finished.returncode == 2
    assert "no image: give files, folders, patterns or --watch DIR" in finished.stderr
    assert run_main(predict.main, ["good.png"], capsys).returncode == 2


def test_help_shows_the_examples(run: Run) -> None:
    assert predict.EXAMPLE in run("--help").stdout


# Watching a folder


def appear(image: Path, folder: Path) -> None:
    """Move an image into the folder in one step, as cameras do by renaming."""
    shutil.copy(image, folder.parent / image.name)
    (folder.parent / image.name).replace(folder / image.name)


def test_watching_continues_after_bad_images_and_ends_with_ctrl_c(
    tiny_bundle: Path, images: Path, tmp_path: Path
) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    shutil.copy(images / "good.png", incoming)
    command = [
        sys.executable,
        "-m",
        "stlm_edge.commands.predict",
        "--bundle",
        str(tiny_bundle),
        "--watch",
        str(incoming),
        "--json",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert json.loads(process.stdout.readline())["image"] == str(incoming / "good.png")
        appear(images / "more" / "damaged.png", incoming)
        assert process.stderr.readline().startswith(f"error: {incoming}/damaged.png: truncated")
        appear(images / "spot.jpg", incoming)
        assert json.loads(process.stdout.readline())["anomalous"] is True
        time.sleep(1.2)  # two more polls
    finally:
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)
    assert (process.returncode, rest, errors) == (0, "", "")


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    (tmp_path / "incoming").mkdir()
    return tmp_path / "incoming"


def names(watching: Iterator[Path], count: int) -> list[str]:
    return [next(watching).name for _ in range(count)]


def test_existing_images_come_first_oldest_first(incoming: Path) -> None:
    for name in ("b.png", "a.png"):
        tiny_image(1).save(incoming / name)
        time.sleep(0.02)
    (incoming / "notes.txt").write_text("no image")
    (incoming / ".hidden.png").write_bytes(b"x")
    (incoming / "folder.png").mkdir()
    watching = arrivals(incoming, poll_seconds=0.01)
    assert names(watching, 2) == ["b.png", "a.png"]
    tiny_image(2).save(incoming / "c.png")
    assert names(watching, 1) == ["c.png"]


def test_file_is_yielded_when_it_is_complete(incoming: Path, tmp_path: Path) -> None:
    tiny_image(1).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    parts = [content[start : start + 1000] for start in range(0, len(content), 1000)]

    def write_slowly() -> None:
        with (incoming / "slow.png").open("wb", buffering=0) as file:
            time.sleep(0.3)  # empty for longer than the poll interval
            for part in parts:
                file.write(part)
                time.sleep(0.02)

    writer = threading.Thread(target=write_slowly)
    writer.start()
    arrived = next(arrivals(incoming, poll_seconds=0.1))
    assert arrived.read_bytes() == content
    writer.join()


def test_image_written_again_is_yielded_again(incoming: Path) -> None:
    tiny_image(1).save(incoming / "frame.png")
    watching = arrivals(incoming, poll_seconds=0.01)
    assert names(watching, 1) == ["frame.png"]
    time.sleep(0.02)
    tiny_image(2).save(incoming / "frame.png")
    tiny_image(2).save(incoming / "other.png")
    assert sorted(names(watching, 2)) == ["frame.png", "other.png"]


def test_missing_folder_is_refused_and_deleted_folder_ends_the_watch(incoming: Path) -> None:
    with pytest.raises(UsageError, match="no such folder to watch"):
        next(arrivals(incoming / "nowhere"))
    tiny_image(1).save(incoming / "a.png")
    watching = arrivals(incoming, poll_seconds=0.01)
    next(watching)
    (incoming / "a.png").unlink()
    incoming.rmdir()
    with pytest.raises(JobError, match="can no longer be watched"):
        next(watching)
