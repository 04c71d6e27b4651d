"""The layouts of published data sets and of plain folders: one module each, all with the same five names.

    LOOKS                              the layout in a few words, for people
    recognises(root)                   whether the folder looks like it
    categories(root)                   the names of its categories, none where the set isn't divided
    training_samples(root, category)   the normal images to train on
    test_samples(root, category)       the images to evaluate on, normal ones first

What a module knows of its set, it says with its source.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from stlm_edge.data.layouts import btad, dagm, kolektor, mvtec, plain, visa
from stlm_edge.data.sample import Sample


class Layout(Protocol):
    LOOKS: str

    def recognises(self, root: Path) -> bool: ...
    def categories(self, root: Path) -> list[str]: ...
    def training_samples(self, root: Path, category: str | None) -> list[Sample]: ...
    def test_samples(self, root: Path, category: str | None) -> list[Sample]: ...


LAYOUTS: Mapping[str, Layout] = {  # in the order of asking: the last one is the least particular
    "visa": visa,
    "dagm": dagm,
    "btad": btad,
    "kolektor": kolektor,
    "mvtec": mvtec,
    "plain": plain,
}
