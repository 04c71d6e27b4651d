"""Samples of data folders, and errors for malformed folders."""

from pathlib import Path

import pytest
from PIL import Image

from stlm_edge.data import datasets
from stlm_edge.data.datasets import Sample
from stlm_edge.errors import UsageError


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(root / name)
    return root


MVTEC = (
    "train/good/001.png",
    "train/good/000.png",
    "test/good/000.png",
    "test/crack/000.jpg",
    "test/ash/000.png",
    "ground_truth/crack/000_mask.png",
    "ground_truth/ash/000_mask.png",
)


def test_mvtec_layout_is_read(tmp_path):
    root = put(tmp_path, *MVTEC)
    assert [sample.image.name for sample in datasets.training_samples(root)] == ["000.png", "001.png"]
    assert not any(sample.anomalous for sample in datasets.training_samples(root))
    assert datasets.test_samples(root) == [
        Sample(root / "test/good/000.png", False, "good", None),
        Sample(root / "test/ash/000.png", True, "ash", root / "ground_truth/ash/000_mask.png"),
        Sample(root / "test/crack/000.jpg", True, "crack", root / "ground_truth/crack/000_mask.png"),
    ]


def test_category_is_the_folder_of_its_name(tmp_path):
    put(tmp_path / "bottle", *MVTEC)
    put(tmp_path / "cable", *MVTEC)
    assert datasets.training_samples(tmp_path, "cable") == datasets.training_samples(tmp_path / "cable")
    assert datasets.test_samples(tmp_path, "cable") == datasets.test_samples(tmp_path / "cable")


def test_plain_folders_are_read(tmp_path):
    put(tmp_path / "normal", "b.png", "a.png")
    assert [sample.image.name for sample in datasets.training_samples(tmp_path / "normal")] == ["a.png", "b.png"]
    put(tmp_path / "checked", "good/a.png", "torn/b.png")
    assert [
        (sample.defect, sample.anomalous, sample.mask) for sample in datasets.test_samples(tmp_path / "checked")
    ] == [
        ("good", False, None),
        ("torn", True, None),
    ]


def test_samples_have_no_mask_without_ground_truth(tmp_path):
    root = put(tmp_path, "test/good/0.png", "test/torn/0.png")
    assert [sample.mask for sample in datasets.test_samples(root)] == [None, None]


@pytest.mark.parametrize("samples", [datasets.training_samples, datasets.test_samples])
def test_missing_and_empty_data_folders_are_refused(samples, tmp_path):
    with pytest.raises(UsageError, match="nowhere: no such folder; expected a data folder"):
        samples(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="empty; expected a data folder"):
        samples(tmp_path)


@pytest.mark.parametrize("samples", [datasets.training_samples, datasets.test_samples])
def test_category_is_required_and_must_exist(samples, tmp_path):
    put(tmp_path / "bottle", *MVTEC)
    put(tmp_path / "cable", *MVTEC)
    with pytest.raises(UsageError, match="--category: bottle, cable"):
        samples(tmp_path)
    with pytest.raises(UsageError, match="no category cabel in it; there are bottle, cable"):
        samples(tmp_path, "cabel")


def test_category_without_train_good_is_refused(tmp_path):
    put(tmp_path / "cable", "test/good/0.png")
    put(tmp_path / "tile", "train/bad/0.png")
    for root, category in (
        (tmp_path, "cable"),
        (tmp_path / "cable", None),
        (tmp_path, "tile"),
        (tmp_path / "tile", None),
    ):
        with pytest.raises(UsageError, match=r"no train/good in it; put .*/train/good"):
            datasets.training_samples(root, category)


def test_empty_train_good_is_refused(tmp_path):
    (tmp_path / "train/good").mkdir(parents=True)
    with pytest.raises(UsageError, match="train/good: no images in it"):
        datasets.training_samples(tmp_path)


def test_training_on_folders_of_images_is_refused(tmp_path):
    put(tmp_path, "good/a.png", "torn/b.png")
    with pytest.raises(UsageError, match=r"only folders; .* give .*/good"):
        datasets.training_samples(tmp_path)


def test_test_folder_without_good_is_refused(tmp_path):
    put(tmp_path, "a.png")
    with pytest.raises(UsageError, match="neither test/ nor good/ in it"):
        datasets.test_samples(tmp_path)


def test_mask_without_image_is_refused(tmp_path):
    root = put(tmp_path, *MVTEC, "ground_truth/crack/007_mask.png")
    with pytest.raises(UsageError, match=r"crack/007_mask.png: a mask without its image"):
        datasets.test_samples(root)


def test_masks_of_defect_without_images_are_refused(tmp_path):
    root = put(tmp_path, *MVTEC, "ground_truth/dent/000_mask.png")
    with pytest.raises(UsageError, match=r"dent/000_mask.png: a mask without its image"):
        datasets.test_samples(root)


def test_image_without_mask_is_refused(tmp_path):
    root = put(tmp_path, *MVTEC, "test/crack/001.png")
    with pytest.raises(
        UsageError, match=r"test/crack/001.png: no mask .*ground_truth/crack/001_mask.png; add it, or remove"
    ):
        datasets.test_samples(root)
