"""The trained model itself: the reference that every packed model is compared with."""

from pathlib import Path

import numpy as np
import torch

from stlm_edge import checkpoint


class Torch:
    """Runs a checkpoint in float32 on the CPU. Raises UsageError for a file that isn't a checkpoint."""

    name = "torch"

    def __init__(self, path: str | Path, threads: int | None = None):
        if threads:
            torch.set_num_threads(threads)
        opened = checkpoint.load(Path(path))
        self.model = opened.model
        self.calibration = opened.calibration
        self.provenance = opened.provenance
        self.size = opened.model.config.size

    def run(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        """S×S×3 uint8 → the anomaly map, S×S float32, and the score."""
        with torch.inference_mode():
            answer = self.model(torch.tensor(image)[None])
        return answer.anomaly_map[0, 0].numpy(), answer.score.item()
