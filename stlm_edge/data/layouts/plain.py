"""Plain folders: normal images to train on; `good/` and a folder per defect to test on, without masks."""

from pathlib import Path

from stlm_edge.data.layouts.listing import describe_folders, folders
from stlm_edge.data.layouts.mvtec import labelled
from stlm_edge.data.sample import Sample, normal
from stlm_edge.errors import UsageError
from stlm_edge.images import is_image, list_images

LOOKS = "normal images to train on, or good/ and a folder per defect to test on"


def recognises(root: Path) -> bool:
    """Return whether a folder looks like this layout."""
    return _has_images(root) or (root / "good").is_dir()


def categories(root: Path) -> list[str]:
    """Return the names of the categories; none if the data set has no categories."""
    return []


def training_samples(root: Path, category: str | None) -> list[Sample]:
    """Return all images of the folder. Raises UsageError if there are none, or only folders of them."""
    _refuse_category(root, category)
    if (root / "good").is_dir() and not _has_images(root):
        raise UsageError(f"{root}: no images in it, only folders; to train on the normal ones, give {root}/good")
    return [normal(image) for image in list_images(root)]


def test_samples(root: Path, category: str | None) -> list[Sample]:
    """Return the images of every folder, those of `good` first. Raises UsageError without `good`."""
    _refuse_category(root, category)
    if not (root / "good").is_dir():
        raise UsageError(
            f"{root}: neither test/ nor good/ in it; expected the normal test images in {root}/test/good and "
            "each kind of defect in a folder beside it"
        )
    return labelled(root, root / "ground_truth")


def _has_images(folder: Path) -> bool:
    return any(is_image(path) for path in folder.iterdir())


def _refuse_category(root: Path, category: str | None) -> None:
    if category is not None:
        names = describe_folders([path.name for path in folders(root)])
        raise UsageError(f"{root}: no category {category} in it, plain images have none; {names}")
