"""A run folder as training leaves it, of a small network with random weights whose scores vary like a trained one's."""

from pathlib import Path

import numpy as np
import torch
from small_network import SMALL, small_network
from tiny import tiny_image

from stlm_edge.images import load
from stlm_edge.model import ModelConfig, checkpoint
from stlm_edge.threshold import DecisionThreshold
from stlm_edge.training import run_folder

SEEDS = range(100, 112)


def write_small_run(run: Path, even: bool = False, config: ModelConfig = SMALL) -> Path:
    """Write checkpoint, calibration and golden candidates, the threshold in the widest gap between their scores.

    `even`: with a map whose values are near each other, as a trained network's are on normal images. In the others a
    weight's rounding to fp16 alone moves some by 0.1.
    """
    for number, seed in enumerate(SEEDS):
        for folder, defect in (("held_out", False), ("golden/normal", False), ("golden/anomalous", True)):
            (run / folder).mkdir(parents=True, exist_ok=True)
            tiny_image(seed, defect).save(run / folder / f"{number:02}.png")
    images = np.stack([load(tiny_image(seed, defect), config.size) for defect in (False, True) for seed in SEEDS])
    model = small_network(torch.from_numpy(images), config, even)
    with torch.inference_mode():
        scores = np.array([model(torch.from_numpy(image)[None]).score.item() for image in images])
    ordered = np.sort(scores)[4:-4]
    widest = int(np.argmax(np.diff(ordered)))
    threshold = float(ordered[widest : widest + 2].mean())
    decision_threshold = DecisionThreshold(
        value=threshold,
        median_score=threshold - 0.1,
        map_low=0.1,
        map_high=0.9,
        false_alarm_rate=0.01,
        images=len(SEEDS),
        method="maximum plus margin",
        margin=0.01,
        source="training",
    )
    path = run / run_folder.CHECKPOINT
    checkpoint.save(path, model, {"recipe": "random weights", "seed": 0}, decision_threshold)
    return path
