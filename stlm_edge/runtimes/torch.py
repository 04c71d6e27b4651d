"""The trained model: the reference that every packed model is compared with."""

from pathlib import Path

import numpy as np
import torch

from stlm_edge.model import STLM, checkpoint
from stlm_edge.runtimes import Runtime


class Torch(Runtime):
    """A checkpoint in float32; the CPU is the reference. Raises UsageError for a file that is not a checkpoint."""

    name = "torch"

    def __init__(self, artifact: str | Path, threads: int | None = None, device: str = "cpu") -> None:
        if threads:
            torch.set_num_threads(threads)
        loaded = checkpoint.load(Path(artifact))
        self.artifact = artifact
        self.model = loaded.model.to(device)
        self.decision_threshold = loaded.decision_threshold
        self.provenance = loaded.provenance
        self.size = loaded.model.config.size

    def _infer(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        return run_model(self.model, image)


@torch.inference_mode()
def run_model(model: STLM, image: np.ndarray) -> tuple[np.ndarray, float]:
    """Return a model's map, float32 S×S, and score for one image, uint8 S×S×3, as a batch of one."""
    outputs = model(torch.tensor(image, device=model.pixel_mean.device)[None])
    return outputs.anomaly_map[0, 0].cpu().numpy(), outputs.score.item()
