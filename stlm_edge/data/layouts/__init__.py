"""Layouts of published data sets and of plain folders, one module each, which implements `Layout`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from stlm_edge.data.layouts import btad, dagm, kolektor, mvtec, plain, visa
from stlm_edge.data.sample import Sample


class Layout(Protocol):
    """Interface of a module that reads one layout."""

    LOOKS: str
    """Short description of the layout, for error messages."""

    def recognises(self, root: Path) -> bool:
        """Return whether a folder looks like this layout."""

    def categories(self, root: Path) -> list[str]:
        """Return the names of the categories; none if the data set has no categories."""

    def training_samples(self, root: Path, category: str | None) -> list[Sample]:
        """Return the normal images to train on."""

    def test_samples(self, root: Path, category: str | None) -> list[Sample]:
        """Return the images to evaluate on, normal ones first."""


LAYOUTS: Mapping[str, Layout] = {  # in the order of detection, the least specific last
    "visa": visa,
    "dagm": dagm,
    "btad": btad,
    "kolektor": kolektor,
    "mvtec": mvtec,
    "plain": plain,
}
