"""Anomaly maps as images: a perceptual dark-to-bright colour scale with the threshold in its middle."""

import numpy as np
from PIL import Image

from stlm_edge.threshold import DecisionThreshold

# Anchors of the scale at equal steps: near-black, violet, red, orange, pale yellow; lightness rises evenly.
_ANCHORS = np.array(
    [
        [4, 5, 18],
        [48, 16, 88],
        [104, 26, 112],
        [160, 42, 98],
        [212, 72, 66],
        [244, 120, 30],
        [252, 178, 36],
        [252, 255, 164],
    ]
)
_STEPS = np.linspace(0, 1, 256)
_TABLE = np.stack([np.interp(_STEPS, np.linspace(0, 1, len(_ANCHORS)), channel) for channel in _ANCHORS.T], axis=1)
_TABLE = _TABLE.round().astype(np.uint8)
_FADE = np.clip((_STEPS - 0.25) / 0.25, 0, 1)  # 0 below a quarter of the scale, 1 from the threshold on


def colour(anomaly_map: np.ndarray, decision_threshold: DecisionThreshold) -> np.ndarray:
    """Convert a map, H×W, to RGB, uint8 H×W×3; the colour scale spans map_low to map_high."""
    return _TABLE[_levels(anomaly_map, decision_threshold)]


def overlay(
    image: Image.Image, anomaly_map: np.ndarray, decision_threshold: DecisionThreshold, opacity: float = 0.65
) -> Image.Image:
    """Blend a map into its image, at the image's own size.

    Values far below the threshold leave the image unchanged; colours fade in towards the threshold and have the full
    `opacity` (0 to 1) above it.
    """
    levels = Image.fromarray(_levels(anomaly_map, decision_threshold)).resize(image.size, Image.Resampling.BILINEAR)
    colours = levels.copy()
    colours.putpalette(_TABLE.tobytes())
    alpha = levels.point((255 * opacity * _FADE).round().astype(int).tolist())
    return Image.composite(colours.convert("RGB"), image.convert("RGB"), alpha)


def _levels(anomaly_map: np.ndarray, decision_threshold: DecisionThreshold) -> np.ndarray:
    span = max(decision_threshold.map_high - decision_threshold.map_low, 1e-9)
    values = (np.asarray(anomaly_map, dtype=np.float32) - decision_threshold.map_low) / span
    return (np.clip(values, 0, 1) * 255).round().astype(np.uint8)
