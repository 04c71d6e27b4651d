"""Training recipes: one table row each."""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """Where training starts, how long it goes, at what rates and on what loss.

    A rate of 0 freezes that part. With `cosine_schedule` rates warm up and then follow half a cosine; else they stay.
    """

    name: str
    size: int
    batch: int
    start: Literal["generic", "random"]
    epochs: int | None
    """Length in epochs of the training images, or in `steps`."""
    steps: int | None
    optimiser: Literal["adamw", "adam+sgd"]
    plain_lr: float
    decoder_lr: float
    denoising_lr: float
    denoising_target: Literal["teacher", "plain"]
    """Whose features of the clean image the denoising stream learns; "plain" wants a frozen plain stream."""
    fa_lr: float
    """At 0, feature aggregation stays the cosine distance that it begins as, and only its statistics adapt."""
    fa_loss: Literal["cross-entropy+dice", "cross-entropy+dice on nearest pixels", "focal+l1"]
    """Against the mask's share of each cell, or the nearest pixel's; "focal+l1" as published."""
    fa_detached: bool
    """Whether feature aggregation learns from the streams without changing them."""
    freeze_batch_norm: bool
    cosine_schedule: bool
    bf16: bool
    pseudo_anomalies: tuple[str, ...]
    """Kinds of them, each equally likely; data/pseudo_anomalies.py has the table."""
    rotation: bool
    """Turn images as published for MVTec AD's categories: of those that are turned no clean image comes twice, and
    none is cached."""
    validations: int
    """How often the pseudo-anomalies on held-out images are judged."""

    def longer(self, factor: float) -> "Recipe":
        """The same recipe, `factor` times as long."""
        if self.steps:
            return replace(self, steps=max(1, round(self.steps * factor)))
        return replace(self, epochs=max(1, round((self.epochs or 1) * factor)))


QUICK = Recipe(
    name="quick",
    size=224,
    batch=8,
    start="generic",
    epochs=None,
    steps=480,
    optimiser="adamw",
    plain_lr=0.0,
    decoder_lr=0.0,
    denoising_lr=6e-4,
    denoising_target="plain",
    fa_lr=0.0,
    fa_loss="cross-entropy+dice",
    fa_detached=True,
    freeze_batch_norm=True,
    cosine_schedule=True,
    bf16=True,
    pseudo_anomalies=("perlin",),
    rotation=False,
    validations=1,
)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        QUICK,
        replace(QUICK, name="standard", size=448, steps=6000, validations=10),
        # STLM, section IV-A: Adam for the streams and the decoder, SGD for feature aggregation, nothing scheduled.
        Recipe(
            name="paper",
            size=1024,
            batch=2,
            start="random",
            epochs=200,
            steps=None,
            optimiser="adam+sgd",
            plain_lr=5e-4,
            decoder_lr=5e-4,
            denoising_lr=5e-4,
            denoising_target="teacher",
            fa_lr=0.1,
            fa_loss="focal+l1",
            fa_detached=False,
            freeze_batch_norm=False,
            cosine_schedule=False,
            bf16=False,
            pseudo_anomalies=("perlin",),
            rotation=True,
            validations=20,
        ),
    )
}


def for_teacher(recipe: Recipe, is_stand_in: bool) -> Recipe:
    """The recipe as a teacher wants it: `standard` with SAM trains the plain stream and the decoder too, since no start
    that copies SAM is shipped, and the teacher itself answers the clean images. Not measured yet."""
    if recipe.name != "standard" or is_stand_in:
        return recipe
    return replace(recipe, plain_lr=3e-4, decoder_lr=3e-4, denoising_target="teacher")
