"""The quantization set: its images, the same ones every time, and refused folders."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_image

from stlm_edge.errors import UsageError
from stlm_edge.export.pipeline import Exported, export
from stlm_edge.export.quantization_set import IMAGES, choose, quantization_set
from stlm_edge.images import load


@pytest.fixture(autouse=True)
def full_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo the smaller set of the other tests."""
    monkeypatch.setattr("stlm_edge.export.quantization_set.IMAGES", IMAGES)


@pytest.fixture(scope="module")
def normal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("normal")
    for seed in range(80):
        tiny_image(seed, width=40, height=40).save(folder / f"{seed:02}.png")
    return folder


def test_half_is_normal_and_half_pseudo_anomalous(normal: Path) -> None:
    images, provenance = quantization_set(normal, 64)
    assert (len(images), provenance["normal"]) == (IMAGES, IMAGES // 2)
    as_taken = {load(path, 64).tobytes() for path in normal.iterdir()}
    assert [image.tobytes() in as_taken for image in images] == [True] * 50 + [False] * 50
    assert {(image.shape, image.dtype) for image in images} == {((64, 64, 3), np.dtype("uint8"))}


def test_pseudo_anomalies_fill_up_set_of_few_images(tiny_images: Path) -> None:
    images, provenance = quantization_set(tiny_images / "good", 64)
    assert (len(images), provenance["normal"]) == (IMAGES, 24)
    assert len({image.tobytes() for image in images}) == IMAGES


def test_choice_is_random_and_always_the_same(normal: Path, tmp_path: Path) -> None:
    chosen = choose(normal, 50)
    assert chosen == sorted(chosen) == choose(normal, 50)
    assert len(set(chosen)) == 50
    assert chosen != sorted(normal.iterdir())[:50]
    assert {path.name[0] for path in chosen} == set("01234567")
    shutil.copytree(normal, tmp_path / "copy")
    first, again = quantization_set(normal, 64)[1], quantization_set(tmp_path / "copy", 64)[1]
    assert first == again
    assert {name: first[name] for name in ("normal", "pseudo_anomalous", "seed")} == {
        "normal": 50,
        "pseudo_anomalous": 50,
        "seed": 0,
    }
    tiny_image(99, width=40, height=40).save(tmp_path / "copy" / chosen[0].name)
    assert quantization_set(tmp_path / "copy", 64)[1]["sha256"] != first["sha256"]


def test_manifest_records_set(
    exported: dict[str, Exported], small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stlm_edge.export.quantization_set.IMAGES", 24)  # as for `exported`
    for done in exported.values():
        kept = done.manifest.provenance["quantization_set"]
        assert kept == quantization_set(small_checkpoint.parent / "held_out", 64)[1]
        assert (kept["normal"], kept["pseudo_anomalous"]) == (12, 12)


def empty(folder: Path) -> None:
    pass


def nine_images(folder: Path) -> None:
    for seed in range(9):
        tiny_image(seed).save(folder / f"{seed}.png")


def one_that_is_no_image(folder: Path) -> None:
    nine_images(folder)
    (folder / "9.png").write_text("not an image")


def one_that_may_not_be_entered(folder: Path) -> None:
    folder.rmdir()
    folder.symlink_to(folder.name)  # a loop: unreadable for root too


@pytest.mark.parametrize(
    ("fill", "reason"),
    [
        (empty, "folder: no images in it; expected files that end in"),
        (nine_images, "folder: 9 images in it, expected at least 10"),
        (one_that_is_no_image, r"9\.png: .*"),
        (one_that_may_not_be_entered, "folder: (no such folder|cannot be read)"),
    ],
)
def test_unusable_folder_is_refused(fill: object, reason: str, small_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    fill(tmp_path / "folder")  # type: ignore[operator]
    with pytest.raises(UsageError, match=reason) as refusal:
        export("cpu", checkpoint=small_checkpoint, quantization_folder=tmp_path / "folder", out=tmp_path / "bundle")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "bundle").exists()


def test_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)  # root may read everything
    with pytest.raises(UsageError, match=r"cannot be read \(Permission denied\); expected a folder"):
        choose(tmp_path, 50)
