"""Data sets as lists of samples. The layout of a folder is auto-detected unless it is given.

The layouts, one module each in `stlm_edge/data/layouts/`: VisA, DAGM 2007, BTAD, KolektorSDD, MVTec AD, plain folders.
"""

from pathlib import Path

from stlm_edge.data.layouts import LAYOUTS, Layout
from stlm_edge.data.layouts.listing import folders
from stlm_edge.data.sample import Sample as Sample
from stlm_edge.errors import UsageError
from stlm_edge.images import is_image


def training_samples(root: str | Path, category: str | None = None, format: str | None = None) -> list[Sample]:
    """Return the normal images to train on, sorted by name.

    `format` is a key of LAYOUTS; without it the layout is auto-detected. Raises UsageError for a missing or empty
    folder, an unknown layout, a missing category, and a data set of several categories when none is given.
    """
    return _layout(Path(root), format).training_samples(Path(root), category)


def test_samples(
    root: str | Path,
    category: str | None = None,  # noqa: PT028 (not a pytest test)
    format: str | None = None,  # noqa: PT028
) -> list[Sample]:
    """Return the images to evaluate on, normal ones first; of a category's defective images, all have masks or none.

    Raises UsageError as `training_samples` does, for a defective image without its mask in a data set with masks, and
    for a mask without its image.
    """
    return _layout(Path(root), format).test_samples(Path(root), category)


def categories(root: str | Path, format: str | None = None) -> list[str]:
    """Return the names of the categories, if any. Raises UsageError as `training_samples` does."""
    return _layout(Path(root), format).categories(Path(root))


def _layout(root: Path, format: str | None) -> Layout:
    if format is not None and format not in LAYOUTS:
        raise UsageError(f"--format {format}: unknown; expected {', '.join(LAYOUTS)} or none to auto-detect")
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
    listed = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    for folder in folders(root):
        for name, layout in LAYOUTS.items():
            if name != "plain" and layout.recognises(folder):
                return f"{root}: no known layout, found {listed}; {folder} looks like {name}, give that folder"
    known = "; ".join(f"{name}: {layout.LOOKS}" for name, layout in LAYOUTS.items())
    return f"{root}: no known layout, found {listed or 'nothing but hidden files'}; expected one of these: {known}"
