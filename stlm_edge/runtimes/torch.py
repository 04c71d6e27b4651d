"""The trained model itself: the reference that every packed model is compared with."""

from pathlib import Path

import numpy as np
import torch

from stlm_edge.model import STLM, checkpoint


class Torch:
    """Runs a checkpoint in float32. Raises UsageError for a file that isn't a checkpoint.

    The reference is the CPU; another `device`, such as "cuda:0", differs from it by its own rounding.
    """

    name = "torch"

    def __init__(self, path: str | Path, threads: int | None = None, device: str = "cpu"):
        if threads:
            torch.set_num_threads(threads)
        opened = checkpoint.load(Path(path))
        self.model = opened.model.to(device)
        self.decision_threshold = opened.decision_threshold
        self.provenance = opened.provenance
        self.size = opened.model.config.size

    def run(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        """S×S×3 uint8 → the anomaly map, S×S float32, and the score."""
        return answer_of(self.model, image)


@torch.inference_mode()
def answer_of(model: STLM, image: np.ndarray) -> tuple[np.ndarray, float]:
    """A model's answer to one image alone, as a device will ask for it: S×S×3 uint8 → the map and the score."""
    found = model(torch.tensor(image, device=model.pixel_mean.device)[None])
    return found.anomaly_map[0, 0].cpu().numpy(), found.score.item()
