"""Training recipes, one table row each."""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Aggregation:
    """Training of feature aggregation."""

    lr: float
    loss: Literal["cross-entropy+dice", "cross-entropy+dice on nearest pixels", "focal+l1"] = "cross-entropy+dice"
    """The map is compared with the mask's share of each cell, with its nearest pixel, or as published (focal+l1)."""
    detached: bool = True
    """Its loss leaves the streams unchanged."""


@dataclass(frozen=True)
class Recipe:
    """Initial weights, length, learning rates and losses of a training. Raises ValueError for what does not combine."""

    name: str
    size: int
    batch: int
    initial_weights: Literal["shipped", "random"]
    length: int
    unit: Literal["steps", "epochs"]
    optimiser: Literal["adamw", "adam+sgd"]
    """adamw: learning rates warm up and follow half a cosine, gradients are clipped. adam+sgd: as published, constant
    rates, and a tenth of its rate for the head of feature aggregation."""
    denoising_lr: float
    denoising_target: Literal["plain", "teacher"]
    """Network whose features of the clean image the denoising stream learns."""
    plain_lr: float | None
    """Learning rate of the plain stream and the decoder; None keeps them as they begin."""
    aggregation: Aggregation | None
    """None: the anomaly map stays the cosine distance, and feature aggregation only adapts its statistics."""
    freeze_batch_norm: bool
    """Keep the statistics of the encoders' batch norms."""
    bf16: bool
    """Compute in bfloat16 where the processor has instructions for it."""
    pseudo_anomalies: tuple[str, ...]
    """Their kinds, equally likely; data/pseudo_anomalies.py has the table."""
    rotation: bool
    """Rotate images as published for MVTec AD's categories; targets of rotated images are not cached."""
    validations: int
    """Number of validations on held-out images with pseudo-anomalies."""

    def __post_init__(self) -> None:
        if self.plain_lr is not None and self.denoising_target == "plain":
            raise ValueError("a plain stream that is trained is no target: set denoising_target='teacher'")
        if self.optimiser == "adam+sgd" and (self.plain_lr is None or self.aggregation is None):
            raise ValueError("adam+sgd trains all parts: set plain_lr and aggregation")

    def longer(self, factor: float) -> "Recipe":
        """Return the same recipe, `factor` times as long."""
        return replace(self, length=max(1, round(self.length * factor)))


QUICK = Recipe(
    name="quick",
    size=224,
    batch=8,
    initial_weights="shipped",
    length=480,
    unit="steps",
    optimiser="adamw",
    denoising_lr=6e-4,
    denoising_target="plain",
    plain_lr=None,
    aggregation=None,
    freeze_batch_norm=True,
    bf16=True,
    pseudo_anomalies=("perlin",),
    rotation=False,
    validations=1,
)

STANDARD = replace(QUICK, name="standard", size=448, length=6000, validations=10)

PAPER = Recipe(  # STLM, section IV-A
    name="paper",
    size=1024,
    batch=2,
    initial_weights="random",
    length=200,
    unit="epochs",
    optimiser="adam+sgd",
    denoising_lr=5e-4,
    denoising_target="teacher",
    plain_lr=5e-4,
    aggregation=Aggregation(lr=0.1, loss="focal+l1", detached=False),
    freeze_batch_norm=False,
    bf16=False,
    pseudo_anomalies=("perlin",),
    rotation=True,
    validations=20,
)

RECIPES = {recipe.name: recipe for recipe in (QUICK, STANDARD, PAPER)}


def for_teacher(recipe: Recipe, is_proxy: bool) -> Recipe:
    """Return the recipe for a teacher: with SAM, unlike with the proxy, `standard` trains the plain stream."""
    if recipe.name != "standard" or is_proxy:
        return recipe
    return replace(recipe, plain_lr=3e-4, denoising_target="teacher")
