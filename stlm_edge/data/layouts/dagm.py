"""DAGM 2007 (competition "Weakly supervised learning for industrial optical inspection", 29th DAGM symposium).

    Class1/Train/0576.PNG                  all images of a class, defective ones among them, in two halves
    Class1/Train/Label/0576_label.PNG      one label file for each defective image: an ellipse around the defect
    Class1/Train/Label/Labels.txt          (not needed here)
    Class1/Test/0001.PNG  Class1/Test/Label/0003_label.PNG

An image without a label file is normal. For unsupervised detection, the normal images of Train are the training set
and all of Test is the test set; Train's defective images are left out. Sources: the competition's page at
hci.iwr.uni-heidelberg.de; zenodo.org/records/12750201; for label files, data/input_dagm.py of
github.com/vicoslab/mixed-segdec-net-comind2021.
"""

import re
from pathlib import Path

from stlm_edge.data.layouts.listing import category_folder, folders, masks_by_stem, refuse_orphan_masks
from stlm_edge.data.sample import Sample, normal
from stlm_edge.errors import UsageError
from stlm_edge.images import list_images

LOOKS = "ClassN/Train, ClassN/Test, each with Label/NNNN_label.PNG"
_CLASS = re.compile(r"Class(\d+)")


def recognises(root: Path) -> bool:
    """Return whether a folder looks like this layout."""
    return _is_class(root) or bool(categories(root))


def categories(root: Path) -> list[str]:
    """Return the names of the classes, Class1 to Class10, sorted by number."""
    names = [path.name for path in folders(root) if _CLASS.fullmatch(path.name) and _halves(path)]
    return sorted(names, key=lambda name: int(name.removeprefix("Class")))


def training_samples(root: Path, category: str | None) -> list[Sample]:
    """Return the images of Train that no label file marks as defective."""
    return [sample for sample in _samples(_folder(root, category) / "Train") if not sample.anomalous]


def test_samples(root: Path, category: str | None) -> list[Sample]:
    """Return all images of Test, normal ones first."""
    samples = _samples(_folder(root, category) / "Test")
    return sorted(samples, key=lambda sample: (sample.anomalous, sample.image))


def _samples(half: Path) -> list[Sample]:
    images = list_images(half)
    if not (half / "Label").is_dir():
        raise UsageError(f"{half}: no Label folder in it; it marks the defective images, copy it too")
    labels = masks_by_stem(half / "Label", "_label")
    refuse_orphan_masks(labels, {path.stem for path in images}, "the label of X.PNG to be Label/X_label.PNG")
    return [Sample(path, True, "defect", labels[path.stem]) if path.stem in labels else normal(path) for path in images]


def _folder(root: Path, category: str | None) -> Path:
    return category_folder(root, category, categories(root), _is_class(root))


def _is_class(folder: Path) -> bool:
    return len(_halves(folder)) == 2


def _halves(folder: Path) -> set[str]:
    """Return the halves that exist, by exact name also on case-insensitive file systems."""
    return {path.name for path in folders(folder)} & {"Train", "Test"}
