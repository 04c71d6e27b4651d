"""Data sets as one small interface: lists of samples. Which layout a folder has is seen by looking, or said.

The layouts, one module each in `stlm_edge/data/layouts/`: VisA, DAGM 2007, BTAD, KolektorSDD, MVTec AD, plain folders.
"""

from pathlib import Path

from stlm_edge.data.layouts import LAYOUTS, Layout
from stlm_edge.data.layouts.listing import folders
from stlm_edge.data.sample import Sample as Sample
from stlm_edge.errors import UsageError
from stlm_edge.images import is_image


def training_samples(root: str | Path, category: str | None = None, format: str | None = None) -> list[Sample]:
    """The normal images to train on, by name.

    `format` is a key of LAYOUTS; without it the layout is recognised by looking. Raises UsageError for a missing or
    empty folder, one of no known layout, a category that isn't there, and a root of several when none is named.
    """
    return _layout(Path(root), format).training_samples(Path(root), category)


def test_samples(
    root: str | Path,
    category: str | None = None,  # noqa: PT028 (no pytest test)
    format: str | None = None,  # noqa: PT028
) -> list[Sample]:
    """The images to evaluate on, normal ones first; either all defective ones of a category have masks or none.

    Raises UsageError as `training_samples` does, for a defective image without its mask in a set that has masks, and
    for a mask without its image.
    """
    return _layout(Path(root), format).test_samples(Path(root), category)


def categories(root: str | Path, format: str | None = None) -> list[str]:
    """The names of the set's categories; none where it isn't divided. Raises UsageError as `training_samples` does."""
    return _layout(Path(root), format).categories(Path(root))


def _layout(root: Path, format: str | None) -> Layout:
    if format is not None and format not in LAYOUTS:
        raise UsageError(f"--format {format}: unknown; expected one of {', '.join(LAYOUTS)}, or none to have it seen")
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; expected a data folder (MVTec AD layout, or normal images)")
    if not any(root.iterdir()):
        raise UsageError(f"{root}: empty; expected a data folder (MVTec AD layout, or normal images)")
    if format is not None:
        return LAYOUTS[format]
    for layout in LAYOUTS.values():
        if layout.recognises(root):
            return layout
    raise UsageError(_unknown(root))


def _unknown(root: Path) -> str:
    names = [path.name + "/" for path in folders(root)]
    names += sorted(path.name for path in root.iterdir() if path.is_file() and not is_image(path))
    seen = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    for folder in folders(root):
        for name, layout in LAYOUTS.items():
            if name != "plain" and layout.recognises(folder):
                return f"{root}: no known layout, found {seen}; {folder} looks like {name}, give that folder"
    known = "; ".join(f"{name}: {layout.LOOKS}" for name, layout in LAYOUTS.items())
    return f"{root}: no known layout, found {seen or 'nothing but hidden files'}; expected one of these: {known}"
