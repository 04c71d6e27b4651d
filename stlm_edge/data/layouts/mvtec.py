"""MVTec AD (P. Bergmann et al., CVPR 2019) and data sets of its layout, in `root` or one folder per category.

    train/good/*.png   test/good/*.png   test/<defect>/*.png   ground_truth/<defect>/<name of the image>_mask.png

VisA converted by its authors' prepare_data.py (github.com/amazon-science/spot-diff) has the same layout, with two kinds
of test images, `good` and `bad`, and masks with the names of their images: `ground_truth/bad/000.png`.
"""

from pathlib import Path

from stlm_edge.data.layouts.listing import category_folder, check_mask, folders, masks_by_stem, refuse_orphan_masks
from stlm_edge.data.sample import Sample, normal
from stlm_edge.errors import UsageError
from stlm_edge.images import list_images

LOOKS = "train/good, test/good, test/<defect>, ground_truth/<defect>/X_mask.png (or one such folder per category)"
_PARTS = ("train", "test", "ground_truth")


def recognises(root: Path) -> bool:
    """Return whether a folder looks like this layout."""
    return _has_a_part(root) or any(map(_has_a_part, folders(root)))


def categories(root: Path) -> list[str]:
    """Return the names of the categories; none if the data set has no categories."""
    return [] if _has_a_part(root) else [path.name for path in folders(root) if _has_a_part(path)]


def training_samples(root: Path, category: str | None) -> list[Sample]:
    """Return the images of `train/good`. Raises UsageError if there are none."""
    folder = _folder(root, category, "train")
    good = folder / "train" / "good"
    if not good.is_dir():
        raise UsageError(f"{folder}: no train/good in it; put the normal images to train on into {good}")
    return [normal(image) for image in list_images(good)]


def test_samples(root: Path, category: str | None) -> list[Sample]:
    """Return the images of the folders of `test`, `good` first.

    Without a `ground_truth` folder, masks are None. Raises UsageError for a defective image without its mask in that
    folder, and for a mask without its image.
    """
    folder = _folder(root, category, "test")
    if not (folder / "test").is_dir():
        raise UsageError(
            f"{folder}: neither test/ nor good/ in it; expected the normal test images in {folder}/test/good and "
            "each kind of defect in a folder beside it"
        )
    return labelled(folder / "test", folder / "ground_truth")


def labelled(images: Path, truth: Path) -> list[Sample]:
    """Return the images of every folder in `images`, `good` first, with their masks from the folders of `truth`."""
    kinds = sorted((path.name for path in folders(images)), key=lambda name: (name != "good", name))
    if not kinds:
        raise UsageError(f"{images}: empty; expected good/ and one folder per kind of defect")
    rule = "the mask of X.png to be named X_mask.png"
    samples: list[Sample] = []
    for kind in kinds:
        if kind == "good":  # some data sets have empty masks for these
            samples += map(normal, list_images(images / kind))
            continue
        masks, used = masks_by_stem(truth / kind), set()
        for image in list_images(images / kind):
            name = f"{image.stem}_mask" if f"{image.stem}_mask" in masks else image.stem
            check_mask(image, masks.get(name), f"{truth / kind / image.stem}_mask.png", truth)
            samples.append(Sample(image, True, kind, masks.get(name)))
            used.add(name)
        refuse_orphan_masks(masks, used, rule)
    for folder in folders(truth) if truth.is_dir() else []:
        if folder.name not in ("good", *kinds):
            refuse_orphan_masks(masks_by_stem(folder), (), rule)
    return samples


def _folder(root: Path, category: str | None, part: str) -> Path:
    """Return the folder of a category: any folder by its name, or `root` unless only its folders have `part`."""
    names = [path.name for path in folders(root) if category is not None or (path / part).is_dir()]
    return category_folder(root, category, names, not names or (root / part).is_dir())


def _has_a_part(folder: Path) -> bool:
    return any((folder / part).is_dir() for part in _PARTS)
