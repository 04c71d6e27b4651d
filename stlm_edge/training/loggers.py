"""Loggers of a training's metrics and images: TensorBoard, or Weights & Biases."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stlm_edge.errors import UsageError

FOLDER = "tensorboard"


class TensorBoard:
    """Writes event files into a run folder."""

    def __init__(self, out: Path, first: int):
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(out / FOLDER), purge_step=first or None)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics by name."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Log an image, H×W×3 uint8."""
        self.writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


class WeightsAndBiases:
    """Logs to a run of the project `stlm-edge`, the same one again after --resume."""

    def __init__(self, out: Path, config: Mapping[str, Any]):
        try:
            import wandb
        except ImportError:
            raise UsageError("--logger wandb: not installed; pip install wandb, or use --logger tensorboard") from None
        self.wandb = wandb
        name = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
        self.run = wandb.init(
            project="stlm-edge", id=name, name=out.name, dir=str(out), config=dict(config), resume="allow"
        )

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics by name."""
        self.run.log(dict(values), step=step)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Log an image, H×W×3 uint8."""
        self.run.log({name: self.wandb.Image(pixels)}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


def open_logger(kind: str, out: Path, config: Mapping[str, Any], first: int = 0) -> TensorBoard | WeightsAndBiases:
    """Return the logger of the run in `out`, from step `first` on; later steps of an interrupted run are hidden."""
    return WeightsAndBiases(out, config) if kind == "wandb" else TensorBoard(out, first)
