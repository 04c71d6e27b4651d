"""Data sets as one small interface: lists of samples. MVTec AD layout and plain folders.

MVTec AD layout, in `root` itself or in one folder per category:

    train/good/*.png   test/good/*.png   test/<defect>/*.png   ground_truth/<defect>/<name of the picture>_mask.png

Plain: a folder of normal pictures to train on; a folder with `good/` and one folder per defect to test on, no masks.
"""

from dataclasses import dataclass
from pathlib import Path

from stlm_edge.errors import UsageError
from stlm_edge.picture import is_picture, list_pictures


@dataclass(frozen=True)
class Sample:
    """One picture; `defect` is the name of its folder, "good" for a normal one. `mask` is None where there is none."""

    picture: Path
    anomalous: bool
    defect: str
    mask: Path | None


def training_samples(root: str | Path, category: str | None = None) -> list[Sample]:
    """The normal pictures to train on, by name: `train/good` of the MVTec AD layout, or all of a plain folder.

    Raises UsageError for a missing or empty folder, a category without `train/good`, and a root of several categories
    when none is named.
    """
    folder = _category_folder(Path(root), category, "train")
    good = folder / "train" / "good"
    if good.is_dir():
        folder = good
    elif category is not None or any((folder / part).is_dir() for part in ("train", "test", "ground_truth")):
        raise UsageError(f"{folder}: no train/good in it; put the normal pictures to train on into {good}")
    elif (folder / "good").is_dir() and not any(is_picture(path) for path in folder.iterdir()):
        raise UsageError(f"{folder}: no pictures in it, only folders; to train on the normal ones, give {folder}/good")
    return [Sample(picture, False, "good", None) for picture in list_pictures(folder)]


def test_samples(root: str | Path, category: str | None = None) -> list[Sample]:  # noqa: PT028 (no pytest test)
    """The pictures to evaluate on: the folders of `test` (MVTec AD layout) or of a plain folder, `good` first.

    Where there is a `ground_truth` folder, every defective picture has a mask in it and every mask its picture;
    without one, masks are None. Raises UsageError where that does not hold, and for missing and empty folders.
    """
    folder = _category_folder(Path(root), category, "test")
    truth = folder / "ground_truth"
    pictures = folder / "test" if (folder / "test").is_dir() else folder
    if pictures == folder and (category is not None or truth.is_dir() or not (folder / "good").is_dir()):
        raise UsageError(
            f"{folder}: neither test/ nor good/ in it; expected the normal test pictures in {folder}/test/good and "
            "each kind of defect in a folder beside it"
        )
    kinds = sorted((path.name for path in _folders(pictures)), key=lambda name: (name != "good", name))
    if not kinds:
        raise UsageError(f"{pictures}: empty; expected good/ and one folder per kind of defect")
    samples = []
    for kind in kinds:
        for picture in list_pictures(pictures / kind):
            mask = truth / kind / f"{picture.stem}_mask.png" if kind != "good" and truth.is_dir() else None
            if mask is not None and not mask.is_file():
                raise UsageError(f"{picture}: no mask {mask}; add it, or remove {truth} to do without masks")
            samples.append(Sample(picture, kind != "good", kind, mask))
    _refuse_lone_masks(truth, {sample.mask for sample in samples})
    return samples


def _category_folder(root: Path, category: str | None, part: str) -> Path:
    """`root/category`, or `root` where that is a category or a plain folder itself."""
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; expected a data folder (MVTec AD layout, or normal pictures)")
    if category is not None:
        if not (root / category).is_dir():
            raise UsageError(f"{root}: no category {category} in it; {_found(root)}")
        return root / category
    if not any(root.iterdir()):
        raise UsageError(f"{root}: empty; expected a data folder (MVTec AD layout, or normal pictures)")
    categories = [path.name for path in _folders(root) if (path / part).is_dir()]
    if categories and not (root / part).is_dir():
        raise UsageError(f"{root}: several categories in it; name one with --category: {', '.join(categories)}")
    return root


def _refuse_lone_masks(truth: Path, expected: set[Path | None]) -> None:
    for kind in _folders(truth) if truth.is_dir() else []:
        if kind.name == "good":  # some sets ship empty masks of normal pictures
            continue
        for mask in sorted(path for path in kind.iterdir() if is_picture(path)):
            if mask not in expected:
                raise UsageError(f"{mask}: a mask without its picture; expected the mask of X.png to be X_mask.png")


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _found(root: Path) -> str:
    names = [path.name for path in _folders(root)]
    return f"there are {', '.join(names)}" if names else "there are no folders in it"
