"""A training job: its settings, its division of the images, and the initial weights it chooses."""

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
from stlm_edge.files import sha256_of
from stlm_edge.model import STLM, ModelConfig
from stlm_edge.model.stlm import PUBLISHED
from stlm_edge.teachers import TEACHERS, Teacher, check_name, open_teacher
from stlm_edge.teachers.efficientnet_lite0 import EfficientNetLite0
from stlm_edge.training import initial_weights
from stlm_edge.training.recipes import Recipe

LEAST_HELD_OUT = 8
NOT_COMPARED = ("size", "teacher_weights", "false_alarm_rate", "logger", "workers", "save_every")
"""Fields of a job that may differ when it is resumed; its size is in `network`."""


@dataclass(frozen=True)
class Job:
    """Description of a training; the fields are options of stlm-train."""

    data: Path
    recipe: Recipe
    size: int
    category: str | None = None
    format: str | None = None
    seed: int = 0
    teacher: str = EfficientNetLite0.name
    teacher_weights: Path | None = None
    init: str | None = None
    """Initial weights of both streams: "shipped", "random", "vit_t" or a file; None: the recipe's."""
    textures: Path | None = None
    val_fraction: float = 0.15
    patience: int | None = None
    """Stop after so many validations in a row without a better pixel AUROC."""
    false_alarm_rate: float = 0.01
    logger: str = "tensorboard"
    workers: int | None = None
    """DataLoader's processes; None: 0 on a CPU, up to 8 for a GPU."""
    save_every: int = 50
    network: ModelConfig = PUBLISHED
    """Depths and widths; its size is replaced by `size`."""


def config_of(job: Job) -> ModelConfig:
    """Return the network's config. Raises UsageError for an impossible size."""
    try:
        return replace(job.network, size=job.size)
    except ValueError as error:
        raise UsageError(str(error)) from None


def settings_of(job: Job) -> dict[str, Any]:
    """Return the settings for config.json, which must be equal for a run to be resumed. Raises UsageError."""
    check_name(job.teacher)
    _check_init(job)
    if not 0 < job.val_fraction < 1:
        raise UsageError(f"--val-fraction {job.val_fraction}: expected a share between 0 and 1, such as 0.15")
    settings = {name: value for name, value in asdict(job).items() if name not in NOT_COMPARED} | {
        "stlm_edge": stlm_edge.__version__,
        "network": asdict(config_of(job)),
        "teacher": TEACHERS[job.teacher],
        "init": job.init or job.recipe.initial_weights,
    }
    return json.loads(json.dumps(settings, default=str))  # tuples become the lists that will be read back


def category_of(job: Job) -> str:
    """Return the category's name; of data without categories, their folder's."""
    return job.category or job.data.resolve().name


def split(job: Job) -> tuple[list[Path], list[Path]]:
    """Return the normal images that are held out and those to train on. Raises UsageError for too few."""
    paths = [sample.image for sample in training_samples(job.data, job.category, job.format)]
    if len(paths) < 2 * LEAST_HELD_OUT:
        raise UsageError(
            f"{job.data}: {len(paths)} normal images; at least {2 * LEAST_HELD_OUT} are needed, "
            f"{LEAST_HELD_OUT} of them held out for the threshold; take more images of good parts"
        )
    order = np.random.default_rng(job.seed).permutation(len(paths))
    count = min(max(LEAST_HELD_OUT, round(job.val_fraction * len(paths))), len(paths) - LEAST_HELD_OUT)
    return [paths[i] for i in sorted(order[:count])], [paths[i] for i in sorted(order[count:])]


def digest(paths: list[Path]) -> str:
    """Return the sha256 over the names and contents of files, in the order given."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.name.encode() + b"\0" + bytes.fromhex(sha256_of(path)))
    return total.hexdigest()


def initialise(model: STLM, teacher: Teacher, job: Job, images: Images) -> None:
    """Set the initial weights of both streams and the decoder. Raises UsageError for weights that do not suit."""
    init = job.init or job.recipe.initial_weights
    if init in ("random", "vit_t"):
        if isinstance(teacher, EfficientNetLite0):
            teacher.fit(in_batches(images))
        if init == "vit_t":
            initial_weights.copy_mobile_sam(teacher if job.teacher == "vit_t" else open_teacher("vit_t"), model)
    else:
        path = initial_weights.SHIPPED if init == "shipped" else Path(init)
        initial_weights.load(path, model, teacher, frozen=job.recipe.plain_lr is None)
    if init != "random":
        model.fa.initialise_from_cosines()
    model.denoising.load_state_dict(model.plain.state_dict())


def in_batches(images: Images, batch: int = 16) -> Iterator[Tensor]:
    """Yield the images in order as B×S×S×3 uint8."""
    for first in range(0, len(images), batch):
        indices = range(first, min(first + batch, len(images)))
        yield torch.from_numpy(np.stack([images[index] for index in indices]))


def _check_init(job: Job) -> None:
    """Refuse initial weights that a frozen plain stream would keep, though they are not the teacher's features."""
    init = job.init or job.recipe.initial_weights
    if job.recipe.plain_lr is None and (init == "random" or (init == "vit_t" and job.teacher != "vit_t")):
        other = "leave out --init, or choose --recipe paper"
        if init == "vit_t":
            other = "choose --teacher vit_t, or a SAM and --recipe standard"
        raise UsageError(f"--init {init}: --recipe {job.recipe.name} does not train the plain stream; {other}")
