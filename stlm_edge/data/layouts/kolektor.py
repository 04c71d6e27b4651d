"""KolektorSDD (D. Tabernik et al., Journal of Intelligent Manufacturing 31, 2020): 50 commutators, 399 images.

    kos01/Part0.jpg   kos01/Part0_label.bmp   …   kos50/Part7.jpg   kos50/Part7_label.bmp

Every image has a label file, all 0 for a normal one; any value above 0 is a defect. The data set has no split for
unsupervised detection; this is anomalib's (src/anomalib/data/datasets/image/kolektor.py of
github.com/open-edge-platform/anomalib): 80% of the normal images, drawn by scikit-learn's train_test_split with seed
42, are the training set; the other normal images and all defective ones are the test set. The split is by image, so
images of one commutator are in both sets.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stlm_edge.data.layouts.listing import folders, masks_by_stem, refuse_orphan_masks
from stlm_edge.data.sample import Sample, normal
from stlm_edge.errors import UsageError
from stlm_edge.images import is_image, read_image

LOOKS = "kosNN/PartM.jpg with kosNN/PartM_label.bmp"
TRAINING_SHARE, SEED = 0.8, 42


def recognises(root: Path) -> bool:
    """Return whether a folder looks like this layout."""
    return any(next(_images(path), None) is not None for path in _items(root))


def categories(root: Path) -> list[str]:
    """Return the names of the categories; none if the data set has no categories."""
    return []


def training_samples(root: Path, category: str | None) -> list[Sample]:
    """Return four of five normal images, sorted by name."""
    return _split(root, category)[0]


def test_samples(root: Path, category: str | None) -> list[Sample]:
    """Return the other normal images, then all defective ones."""
    return _split(root, category)[1]


def _split(root: Path, category: str | None) -> tuple[list[Sample], list[Sample]]:
    if category is not None:
        raise UsageError(f"{root}: no category {category} in it; KolektorSDD is not divided, leave out --category")
    good, defective = [], []
    for item in _items(root):
        labels = masks_by_stem(item, "_label")
        item_images = list(_images(item))
        refuse_orphan_masks(labels, {path.stem for path in item_images}, "the label of PartM.jpg to be PartM_label.bmp")
        for path in item_images:
            if path.stem not in labels:
                raise UsageError(
                    f"{path}: no {path.stem}_label.bmp beside it; expected a label file for every image, copy it"
                )
            if np.asarray(read_image(labels[path.stem])).any():
                defective.append(Sample(path, True, "defect", labels[path.stem]))
            else:
                good.append(path)
    if not good:
        raise UsageError(f"{root}: no normal images in it; expected {LOOKS}, with label files that are empty for them")
    order = np.random.RandomState(SEED).permutation(len(good))  # as in train_test_split
    tested = len(good) - int(TRAINING_SHARE * len(good))
    test, training = ([normal(good[i]) for i in sorted(part)] for part in (order[:tested], order[tested:]))
    return training, test + defective


def _items(root: Path) -> list[Path]:
    return [path for path in folders(root) if path.name.startswith("kos")]


def _images(item: Path) -> Iterator[Path]:
    return (path for path in sorted(item.glob("Part*")) if is_image(path) and not path.stem.endswith("_label"))
