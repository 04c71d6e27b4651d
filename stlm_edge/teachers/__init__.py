"""The frozen teachers, by name.

Each turns B×S×S×3 uint8 pictures into the two maps, B×256×S/16×S/16, that the streams learn.
"""

from pathlib import Path

from torch import nn

from stlm_edge.errors import UsageError
from stlm_edge.teachers.efficientnet_lite0 import EfficientNetLite0

TEACHERS = {EfficientNetLite0.name: EfficientNetLite0.description}
"""Name → what a model's provenance says of its teacher."""


def open_teacher(name: str, weights: Path | None = None) -> nn.Module:
    """The teacher called `name`. Raises UsageError: unknown."""
    if name not in TEACHERS:
        raise UsageError(f"teacher {name}: unknown; this release has {', '.join(TEACHERS)}")
    return EfficientNetLite0()
