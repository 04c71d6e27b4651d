import dataclasses

import numpy as np
from PIL import Image

from stlm_edge import heatmap
from stlm_edge.threshold import DecisionThreshold

THRESHOLD = DecisionThreshold(0.4, 0.2, 0.1, 0.7, 0.01, 100, "quantile", 0.0, "training")


def lightness(rgb: np.ndarray) -> np.ndarray:
    return rgb.astype(float) @ [0.2126, 0.7152, 0.0722]


def test_colours_get_lighter_with_the_map_and_are_clipped_to_its_range() -> None:
    ramp = np.linspace(0.1, 0.7, 256, dtype=np.float32)[None]
    colours = heatmap.colour(ramp, THRESHOLD)[0]
    assert (np.diff(lightness(colours)) > -1).all()
    assert lightness(colours)[-1] - lightness(colours)[0] > 200
    assert (heatmap.colour(ramp - 5, THRESHOLD)[0] == colours[0]).all()
    assert (heatmap.colour(ramp + 5, THRESHOLD)[0] == colours[-1]).all()


def test_overlay_marks_only_values_above_the_threshold() -> None:
    image = Image.fromarray(np.full((90, 150, 3), 120, np.uint8))
    anomaly_map = np.full((64, 64), 0.1, np.float32)
    anomaly_map[:, 40:] = 0.45
    shown = np.asarray(heatmap.overlay(image, anomaly_map, THRESHOLD))
    assert shown.shape == (90, 150, 3)
    assert (shown[:, :80] == 120).all()
    assert (np.abs(shown[:, 110:].astype(int) - 120).max(axis=2) > 40).all()


def test_zero_opacity_returns_the_image() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
    shown = heatmap.overlay(image, np.ones((32, 32), np.float32), THRESHOLD, opacity=0)
    assert shown.tobytes() == image.tobytes()


def test_equal_map_limits_do_not_divide_by_zero() -> None:
    flat = dataclasses.replace(THRESHOLD, map_low=0.4, map_high=0.4)
    assert np.isfinite(heatmap.colour(np.full((32, 32), 0.4, np.float32), flat)).all()
