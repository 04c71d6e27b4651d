"""Contact sheets: image, mask and heatmap side by side with the verdict, one row per image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy import ndimage

from stlm_edge.data.datasets import Sample
from stlm_edge.files import replacing
from stlm_edge.heatmap import overlay
from stlm_edge.images import read_image, read_mask
from stlm_edge.threshold import DecisionThreshold
from stlm_edge.verdict import is_anomalous

CELL = 264  # pixels, the longer side of an image in a sheet
_GAP, _HEAD, _TEXT = 12, 64, 300
_PAPER, _PANEL, _INK, _MUTED = (255, 255, 255), (240, 241, 243), (24, 26, 31), (98, 104, 115)
_WRONG, _RIGHT, _OUTLINE = (176, 42, 30), (20, 110, 80), (60, 255, 150)

_font = ImageFont.load_default


@dataclass(frozen=True, eq=False)
class Row:
    """An image with its score and its anomaly map, reduced by `shrink`."""

    sample: Sample
    score: float
    small_map: np.ndarray


def shrink(anomaly_map: np.ndarray) -> np.ndarray:
    """Return a map S×S at the size that a sheet shows: at most CELL×CELL, float32."""
    side = min(CELL, len(anomaly_map))
    image = Image.fromarray(np.asarray(anomaly_map, dtype=np.float32))
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def write(path: Path, title: str, rows: Sequence[Row], decision_threshold: DecisionThreshold) -> None:
    """Draw a sheet and write it as JPEG. Raises UsageError for an unreadable image or mask."""
    width = 3 * CELL + _TEXT + 5 * _GAP
    sheet = Image.new("RGB", (width, _HEAD + len(rows) * (CELL + _GAP)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 9), title, _INK, _font(20))
    for column, name in enumerate(("Image", "Mask", "Heatmap", "Verdict")):
        draw.text((_GAP + column * (CELL + _GAP), 40), name, _MUTED, _font(15))
    top_score = max([decision_threshold.value, *(row.score for row in rows)])
    for index, row in enumerate(rows):
        top = _HEAD + index * (CELL + _GAP)
        image = read_image(row.sample.image)
        small = ImageOps.contain(image, (CELL, CELL), Image.Resampling.BILINEAR)
        cells = small, _outlined(small, row.sample, image.size), overlay(small, row.small_map, decision_threshold)
        for column, cell in enumerate(cells):
            left = _GAP + column * (CELL + _GAP)
            draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), _PANEL)
            sheet.paste(cell, (left + (CELL - cell.width) // 2, top + (CELL - cell.height) // 2))
        _write_verdict(draw, (_GAP + 3 * (CELL + _GAP) + 4, top), row, decision_threshold.value, top_score)
    with replacing(path) as temporary:
        sheet.save(temporary, "JPEG", quality=88)


def _outlined(small: Image.Image, sample: Sample, image_size: tuple[int, int]) -> Image.Image:
    """Draw a line around the anomalous regions of the image, or write that there is no mask."""
    if sample.mask is None:
        cell = Image.new("RGB", small.size, _PANEL)
        words = "no mask" if sample.anomalous else "normal"
        ImageDraw.Draw(cell).text((small.width / 2, small.height / 2), words, _MUTED, _font(15), anchor="mm")
        return cell
    mask = Image.fromarray(read_mask(sample.mask, 4 * CELL, image_size)).convert("L")
    inside = np.asarray(mask.resize(small.size, Image.Resampling.BOX)) > 0
    pixels = np.array(small)
    pixels[ndimage.binary_dilation(inside, iterations=4) & ~inside] = (0, 0, 0)
    pixels[ndimage.binary_dilation(inside, iterations=3) & ~inside] = _OUTLINE
    return Image.fromarray(pixels)


def _write_verdict(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], row: Row, threshold: float, top_score: float
) -> None:
    left, top = corner
    verdict = is_anomalous(row.score, threshold)
    right = verdict == row.sample.anomalous
    words = "detected" if verdict and right else "correct" if right else "false alarm" if verdict else "missed"
    colour = _RIGHT if right else _WRONG
    draw.text((left, top + 10), words, colour, _font(26))
    draw.text((left, top + 46), f"verdict: {'anomalous' if verdict else 'normal'}", _INK, _font(17))
    draw.text((left, top + 70), f"label: {_fitted(draw, row.sample.defect, 17, _TEXT - 60)}", _INK, _font(17))
    draw.text((left, top + 104), f"score {row.score:.4f}", _INK, _font(17))
    draw.text((left, top + 128), f"threshold {threshold:.4f}", _MUTED, _font(17))
    if top_score > 0:
        length = _TEXT - 24
        bar = left, top + 162, left + max(0.0, row.score / top_score) * length, top + 174
        mark = left + max(0.0, threshold / top_score) * length
        draw.rectangle((left, top + 162, left + length, top + 174), _PANEL)
        draw.rectangle(bar, colour)
        draw.line((mark, top + 156, mark, top + 180), _INK, 2)
    name = f"{row.sample.image.parent.name}/{row.sample.image.name}"
    draw.text((left, top + CELL - 26), _fitted(draw, name, 15, _TEXT - 24), _MUTED, _font(15))


def _fitted(draw: ImageDraw.ImageDraw, text: str, size: int, width: float) -> str:
    """Return the text, or as much of its end as fits, after an ellipsis."""
    ends = (text, *("…" + text[start:] for start in range(1, len(text))))
    return next((end for end in ends if draw.textlength(end, _font(size)) <= width), "…")
