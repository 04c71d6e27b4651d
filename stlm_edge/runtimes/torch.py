"""The trained model itself: the reference that every packed model is compared with."""

from pathlib import Path

import numpy as np
import torch

from stlm_edge import checkpoint


class Torch:
    """Runs a checkpoint in float32. Raises UsageError for a file that isn't a checkpoint.

    The reference is the CPU; another `device`, such as "cuda:0", differs from it by its own rounding.
    """

    name = "torch"

    def __init__(self, path: str | Path, threads: int | None = None, device: str = "cpu"):
        if threads:
            torch.set_num_threads(threads)
        opened = checkpoint.load(Path(path))
        self.device = device
        self.model = opened.model.to(device)
        self.calibration = opened.calibration
        self.provenance = opened.provenance
        self.size = opened.model.config.size

    def run(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        """S×S×3 uint8 → the anomaly map, S×S float32, and the score."""
        with torch.inference_mode():
            answer = self.model(torch.tensor(image, device=self.device)[None])
        return answer.anomaly_map[0, 0].cpu().numpy(), answer.score.item()
