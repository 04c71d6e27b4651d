"""BTAD, the beanTech anomaly detection set (P. Mishra et al., "VT-ADL", ISIE 2021): three products.

    01/train/ok/0000.bmp   01/test/ok/0000.bmp   01/test/ko/0000.bmp   01/ground_truth/ko/0000.png

A mask has the name of its image, but not always its type: images and masks are bmp and png in 01, png and png in 02,
bmp and bmp in 03. Sources: avires.dimi.uniud.it/papers/btad/btad.zip; the table of types in pull request 162 of
github.com/open-edge-platform/anomalib.
"""

from pathlib import Path

from stlm_edge.data.layouts.listing import category_folder, check_mask, folders, masks_by_stem, refuse_orphan_masks
from stlm_edge.data.sample import Sample, normal
from stlm_edge.images import list_images

LOOKS = "01, 02, 03, each with train/ok, test/ok, test/ko, ground_truth/ko"


def recognises(root: Path) -> bool:
    """Return whether a folder looks like this layout."""
    return _is_product(root) or bool(categories(root))


def categories(root: Path) -> list[str]:
    """Return the names of the categories; none if the data set has no categories."""
    return [] if _is_product(root) else [path.name for path in folders(root) if _is_product(path)]


def training_samples(root: Path, category: str | None) -> list[Sample]:
    """Return the normal images to train on."""
    return [normal(image) for image in list_images(_folder(root, category) / "train" / "ok")]


def test_samples(root: Path, category: str | None) -> list[Sample]:
    """Return the images of `test/ok`, then of `test/ko`; masks are None without a `ground_truth` folder."""
    folder = _folder(root, category)
    defective, truth = list_images(folder / "test" / "ko"), folder / "ground_truth"
    masks = masks_by_stem(truth / "ko")
    refuse_orphan_masks(masks, {path.stem for path in defective}, "the mask of test/ko/X to be named X.png or X.bmp")
    for path in defective:
        check_mask(path, masks.get(path.stem), f"{truth}/ko/{path.stem}.png or .bmp", truth)
    samples = [normal(path) for path in list_images(folder / "test" / "ok")]
    return samples + [Sample(path, True, "ko", masks.get(path.stem)) for path in defective]


def _folder(root: Path, category: str | None) -> Path:
    return category_folder(root, category, categories(root), _is_product(root))


def _is_product(folder: Path) -> bool:
    return (folder / "train" / "ok").is_dir() or (folder / "test" / "ok").is_dir()
