"""A run folder as training leaves it, of a small network with random weights whose scores vary like a trained one's."""

from pathlib import Path

import numpy as np
import torch
from tiny import tiny_image
from torch import nn

from stlm_edge.images import load
from stlm_edge.model import STLM, ModelConfig, checkpoint
from stlm_edge.model.tiny_vit import LayerNorm2d
from stlm_edge.threshold import DecisionThreshold
from stlm_edge.training import run_folder

SMALL_SIZE = 64
SEEDS = range(100, 112)


def write_small_run(
    run: Path, even: bool = False, size: int = SMALL_SIZE, depths: tuple[int, int, int, int] = (1, 1, 1, 1)
) -> Path:
    """Write checkpoint, calibration and golden candidates, the threshold in the widest gap between their scores.

    `even`: with a map whose values are near each other, as a trained network's are on normal images. In the others a
    weight's rounding to fp16 alone moves some by 0.1.
    """
    for number, seed in enumerate(SEEDS):
        for folder, defect in (("held_out", False), ("golden/normal", False), ("golden/anomalous", True)):
            (run / folder).mkdir(parents=True, exist_ok=True)
            tiny_image(seed, defect).save(run / folder / f"{number:02}.png")
    images = np.stack([load(tiny_image(seed, defect), size) for defect in (False, True) for seed in SEEDS])
    model = small_network(torch.from_numpy(images), depths, even)
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


def small_network(images: torch.Tensor, depths: tuple[int, int, int, int] = (1, 1, 1, 1), even: bool = False) -> STLM:
    """All kinds of operators, one block per stage; batch norms and the map's spread fitted to `images`, B×S×S×3."""
    torch.manual_seed(0)
    model = STLM(ModelConfig(images.shape[1], depths))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
        if isinstance(module, LayerNorm2d) and even:
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, std=0.2)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3 * module.in_features**-0.5)
            nn.init.normal_(module.bias, std=0.1)
    with torch.no_grad():
        for encoder in (model.plain, model.denoising):
            for name, parameter in encoder.named_parameters():
                if name.endswith("attention_biases"):
                    nn.init.normal_(parameter)
        model.train()(images)
        model.eval()
        logits = model.fa(*model.streams(model.normalise(images)))
        last = model.fa.head[-1]
        gain = (0.05 if even else 3) / logits.std()
        last.weight.mul_(gain)
        last.bias.copy_((last.bias - logits.mean()) * gain - 2)
    return model
