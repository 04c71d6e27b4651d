"""VisA (Y. Zou et al., "SPot-the-Difference", ECCV 2022) as in its archive: a folder per category, and the splits.

    split_csv/1cls.csv                     object,split,label,image,mask: the use of each image
    candle/Data/Images/Normal/0836.JPG     label normal, without a mask
    candle/Data/Images/Anomaly/000.JPG     label anomaly, in the test split only
    candle/Data/Masks/Anomaly/000.png      its mask; values are 0 and the numbers of defect types

Paths in the CSV are relative to the root. Every mask value other than 0 is anomalous, as in the authors' conversion
(utils/prepare_data.py). Source: github.com/amazon-science/spot-diff, README and split_csv.
"""

import csv
from pathlib import Path, PurePosixPath

from stlm_edge.data.layouts.listing import category_folder, check_mask, masks_by_stem, refuse_orphan_masks
from stlm_edge.data.sample import Sample, normal
from stlm_edge.errors import UsageError

LOOKS = "split_csv/1cls.csv and <category>/Data/Images, <category>/Data/Masks"
SPLIT = Path("split_csv") / "1cls.csv"
COLUMNS = ("object", "split", "label", "image", "mask")
MAX_BYTES = 16_000_000  # the published file has 0.7 MB


def recognises(root: Path) -> bool:
    """Return whether a folder looks like this layout."""
    return (root / SPLIT).is_file() or _is_category(root)


def categories(root: Path) -> list[str]:
    """Return the names of the categories; none if the data set has no categories."""
    return [] if _is_category(root) else list(dict.fromkeys(row["object"] for row in _rows(root)))


def training_samples(root: Path, category: str | None) -> list[Sample]:
    """Return the normal images of the split `train`, sorted by name."""
    root, category = _chosen(root, category)
    rows = [row for row in _rows(root) if row["object"] == category and row["split"] == "train"]
    if any(row["label"] != "normal" for row in rows):
        raise UsageError(f"{root / SPLIT}: anomalous training images of {category}; expected the 1-class split")
    samples = sorted((normal(_inside(root, row["image"])) for row in rows), key=lambda sample: sample.image)
    if not samples:
        raise UsageError(f"{root / SPLIT}: no training images of {category}; expected the complete 1-class split")
    return samples


def test_samples(root: Path, category: str | None) -> list[Sample]:
    """Return the images of the split `test`, normal ones first; masks are None without a Masks folder."""
    root, category = _chosen(root, category)
    masks = root / category / "Data" / "Masks"
    samples = []
    for row in _rows(root):
        if row["object"] != category or row["split"] != "test":
            continue
        image = _inside(root, row["image"])
        if row["label"] == "normal":
            samples.append(normal(image))
        elif masks.is_dir():
            mask = root / row["mask"] if row["mask"] else None
            check_mask(image, mask if mask and mask.is_file() else None, f"{mask or f'in {root / SPLIT}'}", masks)
            samples.append(Sample(image, True, "anomaly", _inside(root, row["mask"])))
        else:
            samples.append(Sample(image, True, "anomaly", None))
    if not samples:
        raise UsageError(f"{root / SPLIT}: no test images of {category}; expected the complete 1-class split")
    stems = {sample.image.stem for sample in samples if sample.anomalous}
    refuse_orphan_masks(masks_by_stem(masks / "Anomaly"), stems, "the mask of Images/Anomaly/X.JPG to be named X.png")
    return sorted(samples, key=lambda sample: (sample.anomalous, sample.image))


def _chosen(root: Path, category: str | None) -> tuple[Path, str]:
    """Return the data set's root and the category; `root` may be the folder of a category."""
    if category is None and _is_category(root):
        return root.resolve().parent, root.resolve().name
    return root, category_folder(root, category, categories(root)).name


def _is_category(root: Path) -> bool:
    return (root / "Data" / "Images").is_dir() and (root.resolve().parent / SPLIT).is_file()


def _rows(root: Path) -> list[dict[str, str]]:
    path = root / SPLIT
    if not path.is_file():
        raise UsageError(f"{path}: no such file; expected VisA's list of images, as in its archive")
    if path.stat().st_size > MAX_BYTES:
        raise UsageError(f"{path}: {path.stat().st_size:,} bytes; expected VisA's list of images, of less than 1 MB")
    try:
        rows = list(csv.DictReader(path.read_text("utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read ({error}); copy VisA's file again") from None
    for number, row in enumerate(rows, start=2):
        if None in row or set(row) != set(COLUMNS) or None in row.values():
            raise UsageError(f"{path}, line {number}: expected the columns {','.join(COLUMNS)}; copy VisA's file again")
        if row["split"] not in ("train", "test") or row["label"] not in ("normal", "anomaly"):
            raise UsageError(
                f"{path}, line {number}: split {row['split'][:20]} and label {row['label'][:20]}; expected train or "
                "test, and normal or anomaly"
            )
        if row["object"] in ("", "..") or PurePosixPath(row["object"]).name != row["object"]:
            raise UsageError(f"{path}, line {number}: object {row['object'][:40]}; expected the name of a folder")
    if not rows:
        raise UsageError(f"{path}: no images in it; copy VisA's file again")
    return rows


def _inside(root: Path, name: str) -> Path:
    """Return `root/name`. Raises UsageError unless it is a file below `root`, since the CSV is untrusted."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\\" in name or not name:
        raise UsageError(f"{root / SPLIT}: path {name[:80]}; expected paths below {root}")
    if not (root / relative).is_file():
        raise UsageError(f"{root / relative}: no such file, but listed in {SPLIT}; unpack VisA's archive again")
    return root / relative
