"""What a training was asked to do, and what it begins from."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import stlm_edge
from stlm_edge.data.batches import Images
from stlm_edge.data.datasets import training_samples
from stlm_edge.errors import UsageError
from stlm_edge.model import STLM, ModelConfig
from stlm_edge.model.stlm import PUBLISHED
from stlm_edge.teachers import TEACHERS, Teacher, open_teacher
from stlm_edge.teachers.efficientnet_lite0 import EfficientNetLite0
from stlm_edge.training import initial_weights
from stlm_edge.training.recipes import Recipe

LEAST_HELD_OUT = 8


@dataclass(frozen=True)
class Job:
    """What to train on what."""

    data: Path
    recipe: Recipe
    size: int
    category: str | None = None
    format: str | None = None
    seed: int = 0
    teacher: str = "efficientnet-lite0"
    teacher_weights: Path | None = None
    init: str | None = None
    """What both streams begin from, instead of the recipe's: "generic", "random", "vit_t", or a start's file."""
    textures: Path | None = None
    val_fraction: float = 0.15
    patience: int | None = None
    """Stop after so many validations in a row without a better pixel AUROC."""
    false_alarm_rate: float = 0.01
    curves: str = "tensorboard"
    workers: int | None = None
    """Processes that make the images; by default none on a CPU, up to 8 beside a GPU."""
    save_every: int = 50
    network: ModelConfig = PUBLISHED
    """Depths and widths; its size is replaced by `size`."""


def asked_for(job: Job) -> dict[str, Any]:
    """What config.json says of the job: what must be equal for a run to be resumed. Raises UsageError."""
    try:
        replace(job.network, size=job.size)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if job.teacher not in TEACHERS:
        raise UsageError(f"teacher {job.teacher}: unknown; this release has {', '.join(TEACHERS)}")
    _check_init(job)
    if not 0 < job.val_fraction < 1:
        raise UsageError(f"--val-fraction {job.val_fraction}: expected a share between 0 and 1, such as 0.15")
    asked = {
        "stlm_edge": stlm_edge.__version__,
        "recipe": asdict(job.recipe),
        "size": job.size,
        "network": asdict(job.network),
        "seed": job.seed,
        "teacher": TEACHERS[job.teacher],
        "init": job.init or job.recipe.start,
        "data": str(job.data),
        "category": job.category,
        "format": job.format,
        "textures": None if job.textures is None else str(job.textures),
        "val_fraction": job.val_fraction,
        "patience": job.patience,
    }
    return json.loads(json.dumps(asked))  # tuples become the lists that will be read back


def category_of(job: Job) -> str:
    """The category's name; of data that are not divided, their folder's."""
    return job.category or job.data.resolve().name


def split(job: Job) -> tuple[list[Path], list[Path]]:
    """The normal images that are held out and those that are trained on. Raises UsageError for too few."""
    samples = [sample.image for sample in training_samples(job.data, job.category, job.format)]
    if len(samples) < 2 * LEAST_HELD_OUT:
        raise UsageError(
            f"{job.data}: {len(samples)} normal images; at least {2 * LEAST_HELD_OUT} are needed, "
            f"{LEAST_HELD_OUT} of them held out for the threshold; take more images of good parts"
        )
    order = np.random.default_rng(job.seed).permutation(len(samples))
    count = min(max(LEAST_HELD_OUT, round(job.val_fraction * len(samples))), len(samples) - LEAST_HELD_OUT)
    return [samples[i] for i in sorted(order[:count])], [samples[i] for i in sorted(order[count:])]


def digest(paths: list[Path]) -> str:
    """sha256 over the names and contents of files, in the order given."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def begin(model: STLM, teacher: Teacher, job: Job, images: Images) -> None:
    """Give both streams and the decoder what they begin from. Raises UsageError for a start that does not suit."""
    init = job.init or job.recipe.start
    if init in ("random", "vit_t"):
        if isinstance(teacher, EfficientNetLite0):
            teacher.fit(in_batches(images))
        if init == "vit_t":
            initial_weights.copy_mobile_sam(teacher if job.teacher == "vit_t" else open_teacher("vit_t"), model)
    else:
        initial_weights.load(
            initial_weights.SHIPPED if init == "generic" else Path(init), model, teacher, frozen=not job.recipe.plain_lr
        )
    if init != "random":
        model.fa.begin_from_cosines()
    model.denoising.load_state_dict(model.plain.state_dict())


def _check_init(job: Job) -> None:
    """Refuse beginnings that a frozen plain stream would keep, though they are not the teacher's features."""
    init = job.init or job.recipe.start
    if job.recipe.plain_lr or init not in ("random", "vit_t"):
        return
    recipe = f"--recipe {job.recipe.name} keeps the plain stream as it begins"
    if init == "random":
        raise UsageError(f"--init random: {recipe}; leave out --init, or train by --recipe paper")
    if job.teacher != "vit_t":
        raise UsageError(
            f"--init vit_t: {recipe}, as MobileSAM's, so that {job.teacher} would teach nothing; give --teacher vit_t, "
            "or a SAM and --recipe standard"
        )


def in_batches(images: Images, batch: int = 16) -> Iterator[Tensor]:
    """B×S×S×3 uint8, in order."""
    for first in range(0, len(images), batch):
        indices = range(first, min(first + batch, len(images)))
        yield torch.from_numpy(np.stack([images[index] for index in indices]))
