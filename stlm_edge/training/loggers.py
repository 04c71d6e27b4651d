"""A training's curves and images, for TensorBoard or Weights & Biases."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stlm_edge.errors import UsageError

FOLDER = "tensorboard"


class Curves(Protocol):
    def numbers(self, values: Mapping[str, float], step: int) -> None: ...

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """`pixels`: H×W×3 uint8."""

    def close(self) -> None: ...


def open_curves(kind: str, out: Path, config: Mapping[str, Any], first: int = 0) -> Curves:
    """Curves of the run in `out`, to be written on from step `first`: what an interrupted run has beyond is hidden.

    Raises UsageError where what `kind` needs is not installed.
    """
    if kind == "wandb":
        try:
            import wandb
        except ImportError:
            raise UsageError("--curves wandb: not installed; pip install wandb, or use --curves tensorboard") from None
        return _WeightsAndBiases(wandb, out, config)
    return _TensorBoard(out, first)


class _TensorBoard:
    def __init__(self, out: Path, first: int):
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(out / FOLDER), purge_step=first or None)

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self.writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class _WeightsAndBiases:
    def __init__(self, wandb: Any, out: Path, config: Mapping[str, Any]):
        self.wandb = wandb
        name = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]  # the same run again after --resume
        self.run = wandb.init(
            project="stlm-edge", id=name, name=out.name, dir=str(out), config=dict(config), resume="allow"
        )

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        self.run.log({name: self.wandb.Image(pixels)}, step=step)

    def close(self) -> None:
        self.run.finish()
