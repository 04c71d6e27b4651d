"""Golden images in a report: those with different verdicts, and the one whose map differs most."""

import base64
import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from PIL import Image, ImageOps

from stlm_edge.bench.result import decode_map, encode_map
from stlm_edge.bundle import Bundle
from stlm_edge.errors import UsageError
from stlm_edge.heatmap import colour
from stlm_edge.images import read_image

SIDE = 224  # pixels


class Worst(NamedTuple):
    """A golden image with both maps and their difference, JPEG as base64."""

    name: str
    image: str
    trained: str
    packed: str
    difference: str
    max_abs_diff: float | None
    magnification: float | None


def worst(row: Mapping[str, Any], bundle: Bundle | None) -> Worst | None:
    """Return the image on which a row's map differs most; None if the row or the bundle has none."""
    recorded = row.get("worst")
    if not recorded or bundle is None:
        return None
    try:
        golden = next(golden for golden in bundle.golden() if golden.name == recorded["name"])
        packed, difference = decode_map(recorded["map"]), decode_map(recorded["difference"])
    except (StopIteration, ValueError, KeyError, TypeError, UsageError):
        return None
    scale, largest = bundle.manifest.decision_threshold, recorded["max_abs_diff"]
    maps = [colour(each, scale) for each in (decode_map(encode_map(golden.map)), packed)]
    maps.append(colour(difference, replace(scale, map_low=0.0, map_high=1.0)))
    trained, *others = (_thumbnail(Image.fromarray(each), Image.Resampling.NEAREST) for each in maps)
    image, magnification = _thumbnail(read_image(golden.image_path)), 1 / largest if largest else None
    return Worst(golden.name, image, trained, others[0], others[1], largest, magnification)


def thumbnails(bundle: Bundle | None, names: set[str]) -> dict[str, str]:
    """Return golden images by name, JPEG as base64; none if the bundle cannot be read."""
    try:
        golden = [each for each in bundle.golden() if each.name in names] if bundle and names else []
        return {each.name: _thumbnail(read_image(each.image_path)) for each in golden}
    except UsageError:
        return {}


def _thumbnail(image: Image.Image, resampling: Image.Resampling = Image.Resampling.BILINEAR) -> str:
    return jpeg(ImageOps.contain(image, (SIDE, SIDE), resampling))


def jpeg(image: Image.Image) -> str:
    """Return an image as JPEG in base64."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=86)
    return base64.b64encode(buffer.getvalue()).decode()
