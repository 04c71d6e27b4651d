"""stlm-predict as a user meets it."""

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_image

import stlm_edge
from stlm_edge.commands import predict


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    tiny_image(1).save(folder / "good.png")
    tiny_image(305, defect=True).save(folder / "spot.jpg")
    tiny_image(306, defect=True).save(folder / "more" / "good.png")
    (folder / "more" / "damaged.png").write_bytes((folder / "good.png").read_bytes()[:200])
    return folder


def run(bundle: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stlm_edge.commands.predict", "--bundle", str(bundle), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)


def test_a_line_for_each_image(tiny_bundle: Path, images: Path) -> None:
    answer = run(tiny_bundle, "good.png", "spot.jpg", cwd=images)
    threshold = stlm_edge.open(tiny_bundle).manifest.decision_threshold.value
    assert (answer.returncode, answer.stderr) == (0, "")
    first, second = answer.stdout.splitlines()
    assert first.split() == ["normal", "score", first.split()[2], "threshold", f"{threshold:.4f}", "good.png"]
    assert second.split()[0] == "ANOMALOUS"
    assert second.endswith("spot.jpg")


def test_json_is_the_python_interface_s_answer(tiny_bundle: Path, images: Path) -> None:
    answer = run(tiny_bundle, "good.png", "spot.jpg", "--json", "--threads", 1, cwd=images)
    bundle = stlm_edge.open(tiny_bundle)
    for line, name in zip(answer.stdout.splitlines(), ["good.png", "spot.jpg"], strict=True):
        verdict = bundle.predict(images / name)
        assert json.loads(line) == {
            "image": name,
            "anomalous": verdict.anomalous,
            "score": pytest.approx(verdict.score, abs=1e-6),
            "threshold": verdict.threshold,
            "heatmap": None,
        }


def test_folders_and_patterns_each_image_once(tiny_bundle: Path, images: Path) -> None:
    (images / "more" / "damaged.png").unlink()
    answer = run(tiny_bundle, ".", "more/*.png", "**/good.png", "--json", cwd=images)
    assert [json.loads(line)["image"] for line in answer.stdout.splitlines()] == [
        "good.png",
        "spot.jpg",
        "more/good.png",
    ]
    absolute = run(tiny_bundle, f"{images}/*.jpg", "--json", cwd=images)
    assert json.loads(absolute.stdout)["image"] == str(images / "spot.jpg")


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tiny_bundle: Path, images: Path) -> None:
    (images / "good.png").rename(images / "part[1].png")
    assert run(tiny_bundle, "part[1].png", cwd=images).returncode == 0


def test_heatmaps_have_the_image_s_size_and_show_the_defect(tiny_bundle: Path, images: Path) -> None:
    (images / "more" / "damaged.png").unlink()
    answer = run(tiny_bundle, "spot.jpg", "good.png", "more", "--out", "out/heatmaps", "--json", cwd=images)
    assert answer.returncode == 0
    written = [json.loads(line)["heatmap"] for line in answer.stdout.splitlines()]
    assert written == [f"out/heatmaps/{n}.heatmap.png" for n in ("spot.jpg", "0002-good.png", "0003-good.png")]
    assert sorted(path.name for path in (images / "out/heatmaps").iterdir()) == sorted(Path(w).name for w in written)
    shown, original = Image.open(images / written[0]), Image.open(images / "spot.jpg")
    assert shown.size == original.size
    changed = np.abs(np.asarray(shown, int) - np.asarray(original, int)).max(axis=2)
    assert changed[36:54, 26:44].mean() > 25  # on the spot
    assert changed[:, 60:].mean() < 10


def test_a_bad_image_among_others_does_not_stop_them(tiny_bundle: Path, images: Path) -> None:
    answer = run(tiny_bundle, "missing.png", "more", "good.png", cwd=images)
    assert answer.returncode == 1
    assert len(answer.stdout.splitlines()) == 2
    errors = answer.stderr.splitlines()
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
def test_what_is_unusable_gets_one_line(tiny_bundle: Path, images: Path, arguments: list[str], line: str) -> None:
    (images / "out").mkdir()
    before = sorted(images.rglob("*"))
    answer = run(tiny_bundle, *arguments, cwd=images)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith(f"error: {line}")
    assert answer.stderr.count("\n") == 1
    assert sorted(images.rglob("*")) == before


def test_a_full_disk_is_one_line_and_leaves_no_half_heatmap(tiny_bundle: Path, images: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "stlm_edge.commands.predict",
        "--bundle",
        str(tiny_bundle),
        "good.png",
        "--out",
        "out",
    ]
    answer = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=images,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert (answer.returncode, answer.stderr) == (1, "error: out/good.png.heatmap.png: File too large\n")
    assert list((images / "out").iterdir()) == []


def test_no_image_and_no_model_are_usage_errors(tiny_bundle: Path, images: Path) -> None:
    answer = run(tiny_bundle, cwd=images)
    assert answer.returncode == 2
    assert "no image: give files, folders, patterns or --watch DIR" in answer.stderr
    command = [sys.executable, "-m", "stlm_edge.commands.predict", "good.png"]
    assert subprocess.run(command, capture_output=True, cwd=images, timeout=60).returncode == 2


def test_help_shows_complete_examples(tiny_bundle: Path, tmp_path: Path) -> None:
    assert predict.EXAMPLE in run(tiny_bundle, "--help", cwd=tmp_path).stdout


def appear(image: Path, folder: Path) -> None:
    """Let an image be in the folder whole at once, as cameras do by renaming."""
    shutil.copy(image, folder.parent / image.name)
    (folder.parent / image.name).replace(folder / image.name)


def test_watching_goes_on_past_bad_images_and_ends_well(tiny_bundle: Path, images: Path, tmp_path: Path) -> None:
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
        time.sleep(1.2)  # two more looks at the folder
    finally:
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)
    assert (process.returncode, rest, errors) == (0, "", "")
