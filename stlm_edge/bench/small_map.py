"""A map or difference small enough for bench.json: at most SIDE values in a row, one byte each."""

import base64
from collections.abc import Sequence

import numpy as np

SIDE = 64


def encode(values: np.ndarray) -> tuple[str, ...]:
    """A square of values from 0 to 1, as `WorstImage` has it: the largest of each place stands for it."""
    places = np.linspace(0, len(values), min(len(values), SIDE) + 1).astype(int)[:-1]
    largest = np.maximum.reduceat(np.maximum.reduceat(values, places, axis=0), places, axis=1)
    levels = (np.clip(largest, 0, 1) * 255).round().astype(np.uint8)
    return tuple(base64.b64encode(row.tobytes()).decode() for row in levels)


def decode(rows: Sequence[str]) -> np.ndarray:
    """Such a square, float32. Raises ValueError where it is none."""
    levels = [np.frombuffer(base64.b64decode(row, validate=True), np.uint8) for row in rows]
    if not 0 < len(levels) <= SIDE or any(len(row) != len(levels) for row in levels):
        raise ValueError("not a square")
    return np.stack(levels).astype(np.float32) / 255
