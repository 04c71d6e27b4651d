"""What all layouts do with folders: list them, choose a category, and pair masks with images."""

from collections.abc import Collection, Sequence
from pathlib import Path

from stlm_edge.errors import UsageError
from stlm_edge.images import is_image


def folders(folder: Path) -> list[Path]:
    """The folders directly in a folder, by name, hidden ones left out."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def folder_of(root: Path, category: str | None, names: Sequence[str]) -> Path:
    """`root/category`; UsageError where it isn't one of `names`, or where none is given."""
    if category is None:
        raise UsageError(f"{root}: several categories in it; name one with --category: {', '.join(names)}")
    if category not in names:
        raise UsageError(f"{root}: no category {category} in it; {found(names)}")
    return root / category


def found(names: Sequence[str]) -> str:
    """Return the part of an error message that lists the folders."""
    return f"there are {', '.join(names)}" if names else "there are no folders in it"


def masks_by_stem(folder: Path, ending: str = "") -> dict[str, Path]:
    """The images of a folder by their names without suffix and `ending`; those without that ending are left out.

    Empty where there is no such folder. Raises UsageError for two masks of one image, and for a JPEG, in which hardly
    a value stays 0.
    """
    masks: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if is_image(path) and path.stem.endswith(ending):
            stem = path.stem.removesuffix(ending)
            if path.suffix.lower() in (".jpg", ".jpeg"):
                raise UsageError(f"{path}: a mask saved as JPEG, whose values are smeared; save it as PNG")
            if stem in masks:
                raise UsageError(f"{path}: a second mask beside {masks[stem].name}; keep the one that is right")
            masks[stem] = path
    return masks


def refuse_lone_masks(masks: dict[str, Path], stems: Collection[str], rule: str) -> None:
    """Raise UsageError for a mask whose image isn't among `stems`; `rule` says how the two are named."""
    for stem, mask in masks.items():
        if stem not in stems:
            raise UsageError(f"{mask}: a mask without its image; expected {rule}")
