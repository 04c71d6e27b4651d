"""Folder listing, category selection and pairing of masks with images, shared by all layouts."""

from collections.abc import Collection, Sequence
from pathlib import Path

from stlm_edge.errors import UsageError
from stlm_edge.images import is_image


def folders(folder: Path) -> list[Path]:
    """Return the visible folders directly in a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def category_folder(root: Path, category: str | None, names: Sequence[str], undivided: bool = False) -> Path:
    """Return `root/category`, or `root` if it is `undivided` and no category is given.

    Raises UsageError for a category that is not one of `names`, and for none in a divided data set.
    """
    if category is None and undivided:
        return root
    if category is None:
        raise UsageError(f"{root}: several categories in it; name one with --category: {', '.join(names)}")
    if category not in names:
        raise UsageError(f"{root}: no category {category} in it; {describe_folders(names)}")
    return root / category


def describe_folders(names: Sequence[str]) -> str:
    """Return the part of an error message that lists the folders."""
    return f"there are {', '.join(names)}" if names else "there are no folders in it"


def masks_by_stem(folder: Path, ending: str = "") -> dict[str, Path]:
    """Return the images of a folder whose stem has the given ending, by their stem without it.

    A missing folder has none. Raises UsageError for two masks of one image, and for a JPEG, whose lossy compression
    changes mask values.
    """
    masks: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if is_image(path) and path.stem.endswith(ending):
            stem = path.stem.removesuffix(ending)
            if path.suffix.lower() in (".jpg", ".jpeg"):
                raise UsageError(f"{path}: a mask saved as JPEG, whose compression changes its values; save it as PNG")
            if stem in masks:
                raise UsageError(f"{path}: a second mask beside {masks[stem].name}; keep the correct one")
            masks[stem] = path
    return masks


def check_mask(image: Path, mask: Path | None, expected: str, truth: Path) -> None:
    """Raise UsageError if a defective image has no mask although the ground-truth folder `truth` exists."""
    if mask is None and truth.is_dir():
        raise UsageError(f"{image}: no mask {expected}; add it, or remove {truth} to evaluate without masks")


def refuse_orphan_masks(masks: dict[str, Path], stems: Collection[str], rule: str) -> None:
    """Raise UsageError for a mask whose image is not among `stems`; `rule` describes their names."""
    for stem, mask in masks.items():
        if stem not in stems:
            raise UsageError(f"{mask}: a mask without its image; expected {rule}")
