"""Training recipes: one table row each."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """How long, at what rate and on what loss. Learning rates follow a cosine after a warm-up, or stay constant."""

    name: str
    size: int
    batch: int
    distil_steps: int
    """Steps of the common start: one encoder and the decoder learn the teacher, then both streams begin from them."""
    epochs: int | None
    steps: int | None
    """Length of the two-stream training: in epochs of the training pictures, or in steps."""
    optimiser: str
    distil_lr: float
    plain_lr: float
    denoising_lr: float
    fa_loss: str
    freeze_batch_norm: bool
    cosine_schedule: bool
    bf16: bool

    def longer(self, factor: float) -> "Recipe":
        """The same recipe with all its lengths multiplied."""
        scale = lambda length: None if length is None else max(1, round(length * factor)) if length else 0  # noqa: E731
        return replace(
            self, distil_steps=scale(self.distil_steps), epochs=scale(self.epochs), steps=scale(self.steps)
        )


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="quick",
            size=224,
            batch=8,
            distil_steps=350,
            epochs=None,
            steps=150,
            optimiser="adamw",
            distil_lr=7e-4,
            plain_lr=1e-4,
            denoising_lr=3e-4,
            fa_loss="cross-entropy+dice",
            freeze_batch_norm=True,
            cosine_schedule=True,
            bf16=True,
        ),
        Recipe(
            name="standard",
            size=448,
            batch=8,
            distil_steps=8000,
            epochs=None,
            steps=6000,
            optimiser="adamw",
            distil_lr=7e-4,
            plain_lr=1e-4,
            denoising_lr=3e-4,
            fa_loss="cross-entropy+dice",
            freeze_batch_norm=True,
            cosine_schedule=True,
            bf16=True,
        ),
        # STLM, section IV-A: Adam for the streams and the decoder, SGD for feature aggregation, nothing scheduled.
        Recipe(
            name="paper",
            size=1024,
            batch=2,
            distil_steps=0,
            epochs=200,
            steps=None,
            optimiser="adam+sgd",
            distil_lr=0.0,
            plain_lr=5e-4,
            denoising_lr=5e-4,
            fa_loss="focal+l1",
            freeze_batch_norm=False,
            cosine_schedule=False,
            bf16=False,
        ),
    )
}
