"""Images of a bench's parity: where an artifact is farthest from the trained model, and whose verdicts differ."""

import base64
import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from PIL import Image

from stlm_edge.bench.small_map import decode, encode
from stlm_edge.bundle import Bundle
from stlm_edge.errors import UsageError
from stlm_edge.heatmap import colour
from stlm_edge.images import read_image

SIDE = 224  # pixels of what is shown


class Worst(NamedTuple):
    """A golden image, JPEG as base64: itself, both maps, their difference; and how many times that is magnified."""

    name: str
    image: str
    trained: str
    found: str
    difference: str
    most: float | None
    magnified: float | None


def worst(row: Mapping[str, Any], bundle: Bundle) -> Worst | None:
    """The image on which a row's map differs most; None where the row or the bundle doesn't tell."""
    told = row.get("worst")
    if not told:
        return None
    try:
        golden = next((golden for golden in bundle.golden() if golden.name == told["name"]), None)
        found, difference = decode(told["map"]), decode(told["difference"])
    except (ValueError, KeyError, TypeError, UsageError):
        return None
    if golden is None:
        return None
    scale, most = bundle.manifest.decision_threshold, told["max_abs_diff"]
    drawn = [colour(each, scale) for each in (decode(encode(golden.map)), found)]
    drawn.append(colour(difference, replace(scale, map_low=0.0, map_high=1.0)))
    maps = [_jpeg(Image.fromarray(each), Image.Resampling.NEAREST) for each in drawn]
    return Worst(
        golden.name,
        _jpeg(read_image(golden.image_path)),
        maps[0],
        maps[1],
        maps[2],
        most,
        1 / most if most else None,
    )


def thumbnails(bundle: Bundle, names: set[str]) -> dict[str, str]:
    """Golden images by their names, JPEG as base64; those that can't be read are left out."""
    try:
        return {golden.name: _jpeg(read_image(golden.image_path)) for golden in bundle.golden() if golden.name in names}
    except UsageError:
        return {}


def _jpeg(image: Image.Image, way: Image.Resampling = Image.Resampling.BILINEAR) -> str:
    scale = SIDE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    buffer = io.BytesIO()
    image.convert("RGB").resize(size, way).save(buffer, "JPEG", quality=86)
    return base64.b64encode(buffer.getvalue()).decode()
