"""The frozen teachers, by name.

Each turns B×S×S×3 uint8 images into the two maps, B×256×S/16×S/16, that the streams learn, and has a `name`, a
`description` for provenance, and the `digest` (sha256) of its weights.
"""

from pathlib import Path

from stlm_edge.errors import UsageError
from stlm_edge.teachers import sam, weights
from stlm_edge.teachers.efficientnet_lite0 import EfficientNetLite0
from stlm_edge.teachers.sam import Sam

Teacher = EfficientNetLite0 | Sam

TEACHERS = {
    EfficientNetLite0.name: EfficientNetLite0.description,
    **{name: published.description for name, published in weights.PUBLISHED.items()},
}
"""Name → description in a model's provenance."""


def check_name(name: str) -> None:
    """Raise UsageError for a name that is not one of TEACHERS."""
    if name not in TEACHERS:
        raise UsageError(f"teacher {name}: unknown; expected {', '.join(TEACHERS)}")


def open_teacher(name: str, weights_file: Path | None = None, channels: int = 256) -> Teacher:
    """Return a teacher with SAM's published weights from a file, or else from the cache folder, downloaded once.

    `channels` are those of the proxy teacher's maps. Raises UsageError for an unknown name or a file that is not the
    published one, and JobError where the weights cannot be downloaded.
    """
    check_name(name)
    if name == EfficientNetLite0.name:
        if weights_file is not None:
            raise UsageError(
                f"{weights_file}: {name} has its weights in a package; name a SAM, such as --teacher vit_b"
            )
        return EfficientNetLite0(channels)
    published = weights.PUBLISHED[name]
    return sam.open_sam(name, weights_file or weights.fetched(published), published)
