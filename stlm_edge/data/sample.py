"""What a data set is made of."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """One picture; `defect` is the name of its folder, "good" for a normal one. `mask` is None where there is none."""

    picture: Path
    anomalous: bool
    defect: str
    mask: Path | None


def normal(picture: Path) -> Sample:
    return Sample(picture, False, "good", None)
